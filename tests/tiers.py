"""Which tests run when: `make test-fast` those that are not SLOW, `make test` all but the LONG ones, `make fuzz` the LONG ones too.

Patterns of `<file name>::<test>`, the folder before it where several have that name (`triton/test_linear.py`), as :mod:`fnmatch`
has them with brackets taken as they are. A test is long where it costs much and says little that others do not, such as further
shapes of what Triton's interpreter runs slowly and further moments at which a run is killed.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

LONG = (
    "test_golden.py::*[att_hidden_full_div2_h4-triton by edge]",
    "test_golden.py::*[att_in0_div*-triton by edge]",
    "test_golden.py::*[conv_*-triton by edge]",
    "test_equivariance.py::*_by_triton_kernels_*[torch.float32-4-*]",
    "test_equivariance.py::*_by_triton_kernels_*[torch.float64-4-NONE]",
    "test_equivariance.py::*_by_triton_kernels_*[torch.float64-4-PARTIAL]",
    "test_compile.py::test_transformer[torch-True]",
    "test_compile.py::test_transformer[triton-True]",
    "test_joint.py::test_joined_is_as_apart[none]",
    "test_joint.py::test_joined_is_as_apart[partial]",
    "test_joint.py::test_joined_is_as_apart[none, everything kept]",
    "test_joint.py::test_joined_is_as_apart[without*]",
    "test_joint.py::test_joined_is_as_apart[*at the end]",
    "test_joint.py::test_joined_is_as_apart[means over edges]",
    "test_joint.py::test_two_runs_are_the_same_to_the_last_bit",
    "test_depthwise_conv.py::test_against_the_formula[triton-degree 2-*]",
    "test_depthwise_conv.py::test_against_the_formula[triton-one hub-*]",
    "test_depthwise_conv.py::test_against_the_formula[triton-from scalars-torch.float32-*]",
    "test_depthwise_conv.py::test_against_the_formula[triton-*-torch.float32-rows]",
    "test_depthwise_conv.py::test_third_derivatives[triton]",
    "test_edge_attention*.py::test_rows_beyond_32_bit_offsets",
    "test_edge_attention_in_frames.py::test_nodes_with_one_edge_and_with_ten_thousand",
    "test_edge_attention_in_frames.py::test_each_dtype[mixed fibers-*]",
    "test_edge_attention_in_frames.py::test_equals_dense[degrees to 6]",
    "cuda/test_library.py::*[sm_8*]",
    "cuda/test_library.py::*[sm_100]",
    "triton/test_tfn_conv.py::test_bytes_kept_per_edge[False-*]",
    "triton/test_tfn_conv_by_source.py::test_equals_dense[full, 3 degrees]",
    "triton/test_tfn_conv_by_source.py::test_equals_dense[pairs, gaps in the degrees]",
    "triton/test_linear.py::test_weights_in_a_row_have_their_gradient_in_parts[64 parts]",
    "ops/test_linear.py::test_second_derivatives[first part per head-triton]",
    "ops/test_perceptron.py::test_second_derivatives[triton]",
    "triton/test_radial.py::test_profiles_of_several_layers_at_once[64 parts-*]",
    "test_transforms.py::test_gradient_of_parameters[triton-True]",
    "test_transforms.py::test_gradient_of_each_sample[triton]",
    "test_second_derivatives.py::test_third_order[triton-*]",
    "test_strides.py::test_features_and_positions[turned-*-triton]",
    "test_changed_and_unused.py::test_inputs_changed_between_forward_and_backward[low memory-triton]",
    "test_recorded.py::test_nothing_waits_in_a_recorded_step[True]",
    "test_distributed.py::test_a_killed_process_ends_the_run_and_fewer_go_on",
    "test_distributed.py::test_no_process_waits_for_ever[killed]",
    "test_distributed.py::test_several_processes_train_as_one[4-*]",
    "test_commands_under_attack.py::test_a_full_disk[20000]",
    "test_runs_interrupted.py::test_interrupted_runs_end_as_if_nothing_had_been[stopped]",
    "test_train_command.py::test_killed_and_resumed_equals_uninterrupted[replace-3]",
    "test_train_command.py::test_killed_and_resumed_equals_uninterrupted[fsync-5]",
    "test_train_command.py::test_killed_and_resumed_equals_uninterrupted[save-2]",
    "test_train_forces.py::test_two_processes_equal_one_with_the_doubled_batch",
    "test_export_forces.py::test_a_package_*",
    "test_scripts.py::test_other_trainings[benchmark_train_multi_gpu.sh]",
    "test_sample.py::test_the_number_of_processes_changes_nothing",
    "test_weak_scaling.py::test_a_measurement_and_its_file",
    "test_scaling.py::test_real_sweep",
)

SLOW = (
    *LONG,
    "*triton*",
    "test_differential.py::*",
    "test_readers_files.py::*",
    "test_runs_interrupted.py::*",
    "test_joint.py::*",
    "test_edge_attention_in_frames.py::*",
    "cpp/test_tfn_conv.py::*",
    "test_kept_weights.py::test_forked_processes*",
    "cuda/test_tfn_conv.py::*",
    "cuda/test_library.py::*",
    "test_kernel_resources.py::*",
    "test_modelled.py::test_known_launches",
    "test_compile.py::*",
    "test_export.py::*",
    "test_export_forces.py::*",
    "test_evaluate.py::*",
    "test_page.py::*",
    "test_build.py::*",
    "test_release.py::*",
    "test_install.py::*",
    "test_scripts.py::*",
    "test_examples.py::test_notebooks_run*",
    "test_documentation.py::test_shell_commands*",
    "test_in_browser.py::*",
    "test_reproduce.py::*",
    "test_rehearsal.py::*",
    "test_gpu_tests.py::*",
    "test_on_a_device.py::*",
    "test_first_calls.py::*",
    "test_changed_profiles.py::*",
    "test_commands_under_attack.py::*",
    "test_distributed.py::*",
    "test_faulty_files.py::*",
    "test_recorded.py::*",
    "test_sharded.py::*",
    "test_stopping.py::*",
    "test_train_command.py::*",
    "test_train_forces.py::*",
)


def is_in(tier: tuple[str, ...], test: str) -> bool:
    """Whether a test, `<folder>/<file name>::<test>`, is one of a tier."""
    patterns = (pattern.replace("[", "[[]") for pattern in tier)
    return any(fnmatchcase(test, pattern) or fnmatchcase(test, f"*/{pattern}") for pattern in patterns)
