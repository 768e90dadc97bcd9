import os

import pytest

from stepsal.models.cores import usable_cores


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system has no affinity")
def test_a_container_has_as_many_cores_as_its_quota_and_a_process_as_many_as_its_affinity(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    path = tmp_path / "cpu.max"
    for text, cores in (("250000 100000", 2), ("50000 100000", 1), ("900000 100000", 8), ("max 100000", 8)):
        path.write_text(text + "\n")
        assert usable_cores(str(path)) == cores
    assert usable_cores(str(tmp_path / "none")) == 8
