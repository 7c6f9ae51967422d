"""The streaming engine: plan, chunks, facts that are gathered first, the merge itself."""
