from robustcore.cli.bench import load_benchmarks

# In a checkout they lie outside the package; from here on they import as robustcore.benchmarks.
load_benchmarks()
