"""The 18 promises of reliability, each with its tests: `pytest -k c5_05` runs those of number 5, wherever they stand.

`make nightly` adds the long ones (marked slow, in test_reliability_long.py), with the full figures.
"""

import re

__all__ = ["PROMISES", "numbers_of", "plain"]

# number: (promise, tests of other names, wherever they stand). A test named test_c5_NN_… belongs to NN unlisted.
PROMISES: dict[int, tuple[str, tuple[str, ...]]] = {
    1: (
        "200 kills of a process that packs: nothing committed is damaged, the end is the same bytes",
        (
            "test_kills_at_any_moment_lose_only_uncommitted_shards",
            "test_a_killed_writer_leaves_nothing_that_looks_whole",
        ),
    ),
    2: (
        "50 kills of a process that generates: every candidate once, at most one made again per kill",
        ("test_killed_at_random_moments_it_ends_with_the_same_bytes",),
    ),
    3: (
        "an exception at each sample: no marker, no index, and the resumed build is the same",
        ("test_an_exception_at_each_sample_commits_nothing",),
    ),
    4: (
        "full disk, I/O error, read-only folder, SIGTERM, SIGINT: an exit code that is not 0, nothing half committed",
        (
            "test_a_failing_disk_is_a_storage_error_without_a_marker",
            "test_a_full_disk_in_the_middle_cannot_be_committed_past",
            "test_a_full_disk_is_one_clear_error_and_leaves_nothing_half",
        ),
    ),
    5: (
        "a flip every 97 bytes and 500 cuts: all found; no reader gives a part of a sample",
        (
            "test_every_flipped_bit_is_found",
            "test_every_cut_is_found",
            "test_every_truncation_is_found",
            "test_a_changed_image_never_reaches_a_reader_of_rows",
            "test_a_flipped_bit_of_an_index_never_becomes_a_label",
            "test_damage_at_a_url_is_found_and_named",
        ),
    ),
    6: (
        "0, 1, 2 and 5 workers times 1, 2, 3 and 8 ranks: one order",
        (
            "test_the_order_is_the_same_for_any_number_of_workers",
            "test_ranks_read_slices_of_one_global_order",
        ),
    ),
    7: (
        "saved at each of 1,000 steps and restored under other workers: nothing twice, nothing left out",
        ("test_resumption_at_every_batch_under_other_workers",),
    ),
    8: (
        "any ratio and any size: every prefix within one sample, each real sample once per epoch",
        (
            "test_every_prefix_and_every_epoch",
            "test_large_sizes_are_random_access",
            "test_too_few_synthetic_samples_repeat_or_stop",
            "test_synthetic_samples_come_in_passes_over_the_epochs",
        ),
    ),
    9: (
        "the same key, image or seed twice: an error, a row, an error",
        (
            "test_writer_refuses_a_sample_that_does_not_belong",
            "test_a_key_in_two_shards_is_damage",
            "test_a_sound_folder",
        ),
    ),
    10: (
        "another configuration, schema, hand model or weights: the resumption is refused and names the field",
        (
            "test_the_ratio_may_change_and_what_changes_pixels_may_not",
            "test_every_reader_of_another_version_says_so",
        ),
    ),
    11: (
        "hostile files: refused in a second and 200 MB, no code run",
        (
            "test_hostile_tars_are_refused_quickly",
            "test_too_many_members_are_refused",
            "test_the_forbidden_global_is_named_and_not_run",
            "test_nothing_is_unpickled",
            "test_hostile_pickles_are_refused_and_run_nothing",
            "test_foreign_and_hostile_files",
        ),
    ),
    12: (
        "broken and odd images: an error with a name, the run goes on, the counts say how many",
        (
            "test_damaged_images_are_typed_errors",
            "test_extras_are_read",
            "test_one_bad_input_is_rows_with_a_reason_and_the_budget_is_kept",
            "test_a_broken_source_stops_a_conversion_and_it_goes_on",
            "test_the_reasons_of_failed_real_images_are_kept",
            "test_a_damaged_image_or_sequence_is_named",
            "test_broken_images_are_named",
        ),
    ),
    13: (
        "changed bytes of labels, shards, configurations and metadata: only this library's errors",
        (
            "test_changed_bytes_give_only_our_errors",
            "test_damage_gives_only_errors_of_this_library",
            "test_damage_never_escapes_as_another_error",
        ),
    ),
    14: (
        "built twice, and by one and by four processes: the same bytes",
        ("test_same_samples_give_the_same_bytes",),
    ),
    15: (
        "ties, NaN, no hand, all failing, one candidate: the rule that is written down, with reasons",
        (
            "test_ties_break_on_the_candidate_index_whatever_the_order",
            "test_share_is_rounded_up_and_a_lone_candidate_has_no_rank",
            "test_every_failure_goes_even_past_the_share",
            "test_failed_candidates_use_up_the_share_first",
            "test_no_hand_and_nan_are_infinite_with_a_reason",
        ),
    ),
    16: ("a million samples: under 500 MB above the idle process", ()),
    17: (
        "two builders in one folder: one wins each shard, no file is torn",
        (
            "test_two_writers_of_one_name_leave_one_whole_shard",
            "test_a_running_build_is_not_disturbed",
        ),
    ),
    18: (
        "plain webdataset and Hugging Face datasets read the same samples",
        (
            "test_plain_webdataset_gives_the_same_samples",
            "test_hugging_face_datasets_gives_the_same_samples",
            "test_plain_webdataset_reads_the_same_samples",
        ),
    ),
}


def plain(name: str) -> str:
    """A test's name without parameters and without a number of its file's own: test_09_x[a] is test_x."""
    return re.sub(r"^test_\d+_", "test_", name.partition("[")[0])


def numbers_of(name: str) -> list[str]:
    """The keywords ("c5_05") of a test."""
    return [f"c5_{number:02d}" for number, (_, tests) in PROMISES.items() if plain(name) in tests]
