"""What is demanded of the service, row by row, and the tests that hold it.

`test_demands.py` sees that they exist, `benchmarks/serve.py` makes `docs/reliability.md` of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Row:
    """One demand.

    Attributes:
        id, what: its name and what must hold.
        pr, long: how much of it `make test-serve` and `make test-long` do; long "" = the same.
        tests: "file::test" below `tests/`; a file alone means all of it.
        figure: key of `benchmarks/results/serve.json` with its measured numbers, or "".
    """

    id: str
    what: str
    pr: str
    long: str
    tests: tuple[str, ...]
    figure: str = ""


FAULTS: dict[str, tuple[str, ...]] = {
    "engine killed": ("server/test_faults.py::test_engine_killed_under_a_request", "server/test_faults.py::test_idle_engine_killed"),
    "engine stopped": ("server/test_faults.py::test_engine_stopped_and_engine_hung",),
    "exception in the engine": ("server/test_faults.py::test_one_question_of_a_batch_fails",),
    "engine hung": ("server/test_faults.py::test_engine_stopped_and_engine_hung",),
    "no memory for one of a batch": (
        "server/test_faults.py::test_one_question_of_a_batch_fails",
        "server/test_engine.py::test_a_batch_that_fails_is_split",
    ),
    "logits that are not numbers": ("server/test_engine.py::test_masks_and_states_that_are_not_numbers",),
    "an empty mask": ("server/test_engine.py::test_masks_and_states_that_are_not_numbers",),
    "engine does not start": (
        "server/test_faults.py::test_an_engine_that_never_gets_ready",
        "server/test_faults.py::test_questions_while_the_model_loads",
    ),
    "device lost": ("server/test_engine.py::test_a_lost_device_ends_the_engine",),
    "client gone in mid-upload": ("server/test_faults.py::test_half_an_upload",),
    "client gone in mid-stream": (
        "server/test_faults.py::test_client_gone_frees_its_place",
        "server/test_faults.py::test_a_place_that_was_left_is_given_to_the_next",
        "server/test_faults.py::test_client_gone_leaves_the_session_as_it_was",
    ),
    "200 connections that send a byte now and then": ("server/test_faults.py::test_slow_heads_and_slow_bodies",),
    "half a multipart body": ("server/test_faults.py::test_half_an_upload",),
    "disk full": ("server/test_faults.py::test_disk_full", "apps/test_batch.py::test_a_full_disk_stops_the_run_with_its_reason"),
    "disk read-only": (
        "server/test_parts.py::test_a_disk_that_takes_nothing_is_said_and_survived",
        "server/test_faults.py::test_what_must_not_start",
    ),
    "port in use": ("server/test_faults.py::test_what_must_not_start",),
    "SIGTERM under load": ("server/test_faults.py::test_sigterm_under_load",),
    "a second signal": ("server/test_faults.py::test_second_signal_ends_at_once",),
    "server killed and started again": (
        "server/test_faults.py::test_killed_server_leaves_no_engine_and_loses_nothing",
        "web/test_conversation.py::test_a_restart_of_the_server_loses_nothing",
    ),
    "file of weights missing": ("test_model.py::test_incomplete_folders_are_refused", "test_published.py::test_every_wrong_folder_has_its_message"),
    "file of weights cut off": (
        "store/test_catalogue.py::test_missing_or_cut_file_makes_it_not_ready_but_is_no_crash",
        "test_published.py::test_a_single_damaged_safetensors_file",
    ),
    "a flipped bit in the weights": (
        "store/test_catalogue.py::test_one_changed_byte_in_any_file_is_found",
        "test_verify.py::test_one_changed_number_is_found_by_every_load",
    ),
    "download cut off at half": ("store/test_fetch.py::test_interrupted_at_half_the_next_call_asks_for_the_other_half_only",),
    "weights of another configuration": (
        "test_model.py::test_any_harm_to_the_file_is_named",
        "test_published.py::test_any_harm_is_named_with_its_file",
    ),
    "URL of a slow host": ("server/test_parts.py::test_hosts_that_cheat",),
    "URL of a host that never ends": ("server/test_parts.py::test_hosts_that_cheat",),
    "URL that moves for ever": ("server/test_parts.py::test_hosts_that_cheat",),
    "name that leads inside the second time": (
        "server/test_parts.py::test_names_that_lead_inside_are_refused",
        "server/test_parts.py::test_a_picture_is_fetched_from_the_checked_address",
    ),
    "batch killed at half and started again": (
        "apps/test_batch.py::test_killed_and_restarted_is_uninterrupted",
        "apps/test_batch.py::test_kill_9_and_restart_as_processes",
    ),
}

ROWS = (
    Row(
        "L1",
        "steady load: nothing lost, nothing mixed up, nobody waits for more than three rounds",
        "100 clients, 2,000 requests",
        "20,000 requests",
        ("server/test_load.py::test_a_hundred_clients_lose_nothing",),
        "steady",
    ),
    Row(
        "L2",
        "a burst is answered or refused at once with Retry-After",
        "500 at once, queue of 64",
        "5 times",
        ("server/test_load.py::test_a_burst_is_answered_or_refused_at_once", "server/test_load.py::test_a_refusal_waits_for_nobody"),
        "burst",
    ),
    Row(
        "L3",
        "a loud key harms no other",
        "50 a second beside 5 x 2, 5 s; 40 waiting beside 1",
        "60 s",
        ("server/test_load.py::test_a_loud_key_does_not_slow_the_others", "server/test_load.py::test_who_asks_once_does_not_wait_for_who_asks_often"),
        "fairness",
    ),
    Row(
        "L4",
        "more sessions than are kept: 410 for the oldest, one encoding a picture, bounded memory",
        "1,200 over a limit of 1,000, 5 turns, 50 pictures",
        "20 turns",
        ("server/test_load.py::test_more_sessions_than_are_kept",),
        "sessions",
    ),
    Row(
        "S1",
        "good, bad and abandoned requests leave nothing behind: memory, files, threads",
        "3,000 and 20 s or more",
        "5 minutes",
        ("server/test_load.py::test_a_soak_leaves_nothing_behind",),
        "soak",
    ),
    Row(
        "S2",
        "the same for long, while engines die",
        "-",
        "LISASEG_SOAK_MINUTES (30)",
        ("server/test_load.py::test_a_long_soak_with_deaths_leaves_nothing_behind",),
    ),
    Row(
        "F",
        "29 faults, see below: the right status or exit code, one line in the log, the next request succeeds",
        "each once",
        "those of the server 5 times",
        tuple(sorted({test for tests in FAULTS.values() for test in tests})),
        "restart",
    ),
    Row(
        "K",
        "3 replicas, one killed every few seconds: every answer comes and is right",
        "1,000 requests, every 3 s",
        "10,000 requests, every 5 s",
        ("server/test_clients.py::test_three_replicas_of_which_one_dies_every_few_seconds", "server/test_deploy.py::test_two_replicas_behind_nginx"),
    ),
    Row(
        "I",
        "over 300 pictures of every kind and harm through Python, command line, HTTP and page",
        "all, all, all, every 12th",
        "all through the page too",
        (
            "test_imaging.py::test_every_file_of_the_corpus_gets_its_outcome",
            "server/test_corpora_commands.py::test_pictures",
            "server/test_corpora.py::test_pictures",
            "web/test_corpora.py::test_pictures",
        ),
    ),
    Row(
        "P",
        "over 400 prompts through tokenizer, command line, HTTP and page: no special token, no mask, no markup",
        "all, all, all, every 25th",
        "all through each",
        (
            "test_tokenization.py::test_instructions_never_become_special_tokens",
            "server/test_corpora_commands.py::test_prompts",
            "server/test_corpora.py::test_prompts_get_their_codes",
            "server/test_corpora.py::test_prompts_make_no_masks",
            "web/test_corpora.py::test_prompts",
        ),
    ),
    Row(
        "Z1",
        "mutated pictures and bodies: read or refused with a code below 500, nothing of the inside in it",
        "10,000, and 950 over HTTP",
        "1,000,000, and 95,000 over HTTP; a minute of libFuzzer (atheris) each for pictures, run lengths, bodies and exports",
        (
            "server/test_corpora.py::test_mutations_are_read_or_refused",
            "server/test_corpora.py::test_bytes_of_any_form",
            "server/test_corpora.py::test_objects_of_any_form",
            "server/test_corpora.py::test_pictures_that_were_tampered_with",
            "fuzz/test_fuzz.py::test_nothing_but_our_own_errors_comes_out",
        ),
    ),
    Row(
        "Z2",
        "schemathesis, all checks, stateful: the OpenAPI document is what the server does",
        "300 examples an operation",
        "5,000",
        ("server/test_openapi.py::test_the_document_is_what_the_server_does",),
    ),
    Row(
        "Z3",
        "what is hardly HTTP, on every path with 9 methods: 4xx or closed, and the server lives",
        "200 mutations each",
        "1,000",
        ("server/test_gate.py::test_hardly_http",),
    ),
    Row(
        "X",
        "every route without a key, with a wrong one, and with another's ids",
        "all",
        "",
        (
            "server/test_gate.py::test_nothing_is_served_without_a_key_but_what_holds_nothing",
            "server/test_gate.py::test_only_a_bearer_key_counts",
            "server/test_gate.py::test_things_of_another_key_do_not_exist",
            "server/test_gate.py::test_foreign_hosts_are_refused",
            "server/test_gate.py::test_other_pages_are_refused",
        ),
    ),
    Row(
        "W",
        "the page in Chromium, axe on every view, no error on the console, no request elsewhere: `make test-web`",
        "over 40 flows",
        "",
        ("web/test_pictures.py", "web/test_conversation.py", "web/test_masks.py", "web/test_access.py"),
    ),
    Row(
        "C",
        "clients and readers of others",
        "`openai`, `mcp`, `lisaseg.Client`, `pycocotools`, `cvat-sdk`; in `make test-contracts` also `label-studio-sdk`, `labelme`, `supervision`, "
        "`fiftyone`, `gradio_client`",
        "",
        ("server/test_clients.py", "server/test_mcp.py", "server/test_label_studio.py", "server/test_export.py", "formats/test_vendors.py"),
        "model",
    ),
)


def missing(named: tuple[str, ...]) -> Iterator[str]:
    """What is named and does not exist."""
    for one in named:
        file, _, test = one.partition("::")
        path = TESTS / file
        if not path.is_file() or (test and not re.search(rf"^def {test}\(", path.read_text("utf-8"), re.M)):
            yield one
