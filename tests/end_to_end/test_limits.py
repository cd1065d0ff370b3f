"""Inputs that nothing can be done with: refused in a few lines, before memory runs out."""

import pytest

pytestmark = pytest.mark.end_to_end


@pytest.mark.parametrize("setting", ["evaluate.clips=1000000", "data.frames=2000000"])
def test_clips_that_fit_into_no_memory_are_refused(refused, smoke_run, setting):
    arguments = ["--run", smoke_run[0], "--protocol", "knn", "--set", setting]

    refused("evaluate", *arguments, code=2, says=["evaluate.clips (", "GB of memory, but at most 16 GB are allowed"])


def test_a_dry_run_on_bad_videos_names_them(refused, class_folder):
    for path in class_folder.rglob("*.mp4"):
        path.write_text("not a video")

    says = ["videos cannot be decoded, more than `data.max_failed_share` (0.1) allows", ".mp4: Invalid data"]
    refused("pretrain", "--data", class_folder, "--smoke", "--dry-run", code=1, says=says)
