#include "selftest/broken.cuh"
#include "simt_case.h"

// RC_SIMT_BROKEN(name, kind, kind without recording): the errors that the executor must report with
// its recorder of accesses and, by schedules, poison and guard pages alone, without it. nullptr:
// the bug can be seen only by recording.
namespace robustcore::simt::selftest {
namespace {

// Runs `function` with "input" (64 floats) and "output" (`outputs` floats).
void run(CaseFunction function, std::size_t outputs = 64, std::size_t inputs = 64) {
  std::vector<float> input(inputs), output(outputs);
  for (std::size_t index = 0; index < inputs; ++index) input[index] = 1.0f + 0.25f * index;
  run_function("broken", function, {{"input", array(input)}, {"output", array(output)}});
}

template <auto Kernel>
void launch_on_output(Arguments& arguments) {
  static_cast<void>(arguments.input<float>("input"));
  launch<Kernel>(1, 64, stream(), arguments.output<float>("output"));
}

template <auto Kernel>
void launch_on_both(Arguments& arguments) {
  launch<Kernel>(1, 64, stream(), arguments.input<float>("input"),
                 arguments.output<float>("output"));
}

}  // namespace

#define RC_SIMT_BROKEN_OUTPUT(name, kind, kind_alone) \
  RC_SIMT_BROKEN(name, kind, kind_alone) {            \
    run(launch_on_output<name##_kernel>);             \
  }
#define RC_SIMT_BROKEN_BOTH(name, kind, kind_alone) \
  RC_SIMT_BROKEN(name, kind, kind_alone) {          \
    run(launch_on_both<name##_kernel>);             \
  }

RC_SIMT_BROKEN_OUTPUT(barrier_after_exit, "divergent barrier", "divergent barrier")
RC_SIMT_BROKEN_OUTPUT(barrier_in_branches, "divergent barrier", "divergent barrier")
RC_SIMT_BROKEN_OUTPUT(barrier_in_loop, "divergent barrier", "divergent barrier")
RC_SIMT_BROKEN_BOTH(missing_barrier, "data race", "schedule dependence")
RC_SIMT_BROKEN_BOTH(missing_first_barrier, "unwritten memory", "unwritten memory")
RC_SIMT_BROKEN_BOTH(missing_second_barrier, "data race", "schedule dependence")
RC_SIMT_BROKEN_BOTH(missing_warp_sync, "data race", nullptr)
RC_SIMT_BROKEN_BOTH(unwritten_shared, "unwritten memory", "unwritten memory")
RC_SIMT_BROKEN_BOTH(shared_write_past_end, "shared array overrun", "shared array overrun")
RC_SIMT_BROKEN_BOTH(shared_read_past_end, "shared array overrun", "unwritten memory")
RC_SIMT_BROKEN_OUTPUT(too_much_shared, "too much shared memory", "too much shared memory")

RC_SIMT_BROKEN_BOTH(shuffle_out_of_range, "out-of-range shuffle", "out-of-range shuffle")
RC_SIMT_BROKEN_BOTH(shuffle_beyond_width, "out-of-range shuffle", "out-of-range shuffle")
RC_SIMT_BROKEN_BOTH(shuffle_odd_width, "out-of-range shuffle", "out-of-range shuffle")
RC_SIMT_BROKEN_BOTH(shuffle_from_absent_lane, "absent lane", "absent lane")
RC_SIMT_BROKEN_BOTH(shuffle_after_exit, "absent lane", "absent lane")
RC_SIMT_BROKEN_BOTH(shuffle_outside_mask, "lane outside its mask", "lane outside its mask")
RC_SIMT_BROKEN_BOTH(shuffle_in_branches, "divergent warp primitive", "divergent warp primitive")
RC_SIMT_BROKEN(shuffle_in_partial_warp, "absent lane", "absent lane") {
  run([](Arguments& arguments) {
    launch<shuffle_in_partial_warp_kernel>(1, 48, stream(), arguments.input<float>("input"),
                                           arguments.output<float>("output"));
  });
}

RC_SIMT_BROKEN_OUTPUT(warp_against_block, "deadlock", "deadlock")
RC_SIMT_BROKEN(spin, "deadlock", "deadlock") {
  run([](Arguments& arguments) {
    static_cast<void>(arguments.input<float>("input"));
    unsigned* flag = arguments.zeroed<unsigned>("flag", 1);
    launch<spin_kernel>(1, 64, stream(), arguments.output<float>("output"), flag);
  });
}
RC_SIMT_BROKEN(endless, "deadlock", nullptr) {
  run([](Arguments& arguments) {
    static_cast<void>(arguments.input<float>("input"));
    std::vector<unsigned> flag(1);
    launch<endless_kernel>(1, 64, stream(), arguments.output<float>("output"), flag.data());
  });
}

RC_SIMT_BROKEN_BOTH(read_past_end, "out-of-bounds access", "out-of-bounds access")
RC_SIMT_BROKEN_BOTH(read_far_past_end, "out-of-bounds access", "out-of-bounds access")
RC_SIMT_BROKEN_BOTH(read_before_start, "out-of-bounds access", "out-of-bounds access")
RC_SIMT_BROKEN_BOTH(write_past_end, "out-of-bounds access", "out-of-bounds access")
RC_SIMT_BROKEN_BOTH(write_before_start, "out-of-bounds access", "out-of-bounds write")
RC_SIMT_BROKEN_BOTH(write_to_input, "write to an input", "write to an input")
RC_SIMT_BROKEN(null_pointer, "invalid access", "invalid access") {
  run([](Arguments& arguments) {
    static_cast<void>(arguments.input<float>("input"));
    launch<null_pointer_kernel>(1, 64, stream(), nullptr, arguments.output<float>("output"));
  });
}
RC_SIMT_BROKEN_BOTH(misaligned, "misaligned access", nullptr)
// No page ends behind the array here: only the bytes around it tell.
RC_SIMT_BROKEN(write_into_slack, "out-of-bounds access", "out-of-bounds write") {
  std::vector<float> input(64), output(64);
  run_function("broken", launch_on_both<write_past_end_kernel>,
               {{"input", array(input)}, {"output", array(output)}},
               {{{{}, 0xff, host::Placement::kBeginsAtGuard}}, true});
}
RC_SIMT_BROKEN_BOTH(unwritten_output, "unwritten memory", "unwritten memory")
RC_SIMT_BROKEN(unwritten_scratch, "unwritten memory", "unwritten memory") {
  run([](Arguments& arguments) {
    static_cast<void>(arguments.input<float>("input"));
    launch<unwritten_scratch_kernel>(1, 64, stream(), arguments.scratch<float>("scratch", 64),
                                     arguments.output<float>("output"));
  });
}

RC_SIMT_BROKEN(lost_update, "data race", nullptr) {
  run([](Arguments& arguments) {
    static_cast<void>(arguments.input<float>("input"));
    unsigned* count = arguments.zeroed<unsigned>("count", 1);
    launch<lost_update_kernel>(1, 64, stream(), count, arguments.output<float>("output"));
  });
}
RC_SIMT_BROKEN(last_block_wins, "data race", "schedule dependence") {
  run([](Arguments& arguments) {
    launch<last_block_wins_kernel>(5, 64, stream(), arguments.input<float>("input"),
                                   arguments.output<float>("output"));
  });
}
RC_SIMT_BROKEN(neighbour_block, "unwritten memory", "unwritten memory") {
  run([](Arguments& arguments) {
    launch<neighbour_block_kernel>(2, 32, stream(), arguments.input<float>("input"),
                                   arguments.scratch<float>("values", 64),
                                   arguments.output<float>("output"));
  });
}
RC_SIMT_BROKEN(missing_fence, "data race", nullptr) {
  std::vector<float> input(8, 1.0f), output(1);
  std::vector<unsigned> finished(1);
  run_function("broken",
               [](Arguments& arguments) {
                 launch<missing_fence_kernel>(8, 32, stream(), arguments.input<float>("input"),
                                              arguments.scratch<float>("partial", 8),
                                              arguments.inout<unsigned>("finished"),
                                              arguments.output<float>("output"));
               },
               {{"input", array(input)}, {"finished", array(finished)}, {"output", array(output)}});
}

RC_SIMT_BROKEN_BOTH(assertion, "device assertion", "device assertion")
RC_SIMT_BROKEN_OUTPUT(trap, "trap", "trap")
RC_SIMT_BROKEN(division_by_zero, "arithmetic fault", "arithmetic fault") {
  run([](Arguments& arguments) {
    static_cast<void>(arguments.input<float>("input"));
    launch<division_by_zero_kernel>(1, 64, stream(), arguments.output<float>("output"), 0u);
  });
}
RC_SIMT_BROKEN_OUTPUT(deep_recursion, "stack overflow", "stack overflow")
RC_SIMT_BROKEN_OUTPUT(nested_launch, "launch", "launch")
RC_SIMT_BROKEN(too_large_grid, "launch", "launch") {
  launch<trap_kernel>(std::int64_t{1} << 31, 64, stream(), nullptr);
}
RC_SIMT_BROKEN(too_large_block, "launch", "launch") {
  launch<trap_kernel>(1, 1025, stream(), nullptr);
}

}  // namespace robustcore::simt::selftest
