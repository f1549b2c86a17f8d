"""Machines as trees of kernel files, real tools on the PATH, and this machine itself."""

import os
from pathlib import Path

import psutil
import pytest

from scaler_wizard import gpus as gpus_module
from scaler_wizard.cgroups import memory_limit, memory_used, processor_quota
from scaler_wizard.gpus import gpus
from scaler_wizard.hardware import detect

GIB = 2**30


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def tool(folder: Path, name: str, answer: str, code: int = 0) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\ncat <<'END'\n{answer}\nEND\nexit {code}\n")
    (folder / name).chmod(0o755)


def test_this_machine_is_within_its_own_bounds() -> None:
    here = detect(Path())
    assert 1 <= here.cpus <= (os.cpu_count() or 1)
    assert 0 < here.free_bytes <= here.ram_bytes <= psutil.virtual_memory().total
    assert here.instructions is None or len(set(here.instructions)) == len(here.instructions)


def test_the_lowest_limit_on_the_way_up_counts_in_version_2(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/user/box\n",
            "sys/fs/cgroup/user/box/memory.max": "max\n",
            "sys/fs/cgroup/user/memory.max": f"{2 * GIB}\n",
            "sys/fs/cgroup/user/memory.current": f"{GIB}\n",
            "sys/fs/cgroup/user/memory.stat": f"anon 5\ninactive_file {GIB // 2}\n",
            "sys/fs/cgroup/user/box/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/user/cpu.max": "max 100000\n",
        },
    )
    limit = memory_limit(root)
    assert limit is not None and limit.value == 2 * GIB and limit.basis.endswith("(/sys/fs/cgroup/user/memory.max)")
    assert memory_used(limit) == GIB // 2
    machine = detect(tmp_path, root=root)
    assert (machine.cpus, machine.ram_bytes) == (1, 2 * GIB)
    assert 0 < machine.free_bytes <= 2 * GIB - GIB // 2
    assert "quota of 1.5" in machine.cpu_basis and "container" in machine.ram_basis


def test_version_1_is_read_where_a_container_shows_only_the_top(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{3 * GIB}\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "1000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    limit, quota = memory_limit(root), processor_quota(root)
    assert limit is not None and (limit.value, memory_used(limit)) == (3 * GIB, 1000)
    assert quota is not None and quota.value == 4


@pytest.mark.parametrize("files", [{}, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}])
def test_without_limits_the_machine_itself_counts(tmp_path: Path, files: dict[str, str]) -> None:
    machine = detect(tmp_path, root=tree(tmp_path, files))
    assert (machine.ram_bytes, machine.ram_basis) == (psutil.virtual_memory().total, "the machine's memory")


def test_no_limit_in_version_1_is_a_huge_number(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "4:memory:/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}
    assert memory_limit(tree(tmp_path, files)) is None


@pytest.mark.parametrize(
    ("text", "name", "sets"),
    [
        (
            "model name : Xeon\nflags : fpu avx2 avx512f avx512_bf16 amx_bf16\n",
            "Xeon",
            ("AVX2", "AVX512", "AVX512-bf16", "AMX-bf16"),
        ),
        ("processor : 0\nFeatures : fp asimd i8mm bf16\n", None, ("NEON", "I8MM", "BF16")),
        ("processor : 0\n", None, None),
    ],
)
def test_instruction_sets_are_read_and_unknown_is_none(
    tmp_path: Path, text: str, name: str | None, sets: tuple[str, ...] | None
) -> None:
    machine = detect(tmp_path, root=tree(tmp_path, {"proc/cpuinfo": text}))
    assert (machine.processor, machine.instructions) == (name, sets)


def test_a_machine_that_shows_nothing_has_unknowns_and_no_gpu(tmp_path: Path) -> None:
    machine = detect(tmp_path, root=tmp_path)
    assert (machine.processor, machine.instructions, machine.gpu, machine.vram_bytes) == (None, None, None, None)


def test_nvidia_smi_answers_where_nvml_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(tmp_path / "bin", "nvidia-smi", "GPU-a1, 8192, NVIDIA A2\nGPU-b2, 24576, NVIDIA L4\nGPU-c3, [N/A], Odd one")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if gpus_module._by_nvml() is not None:
        pytest.skip("a real NVIDIA driver answers here")
    found = gpus(tmp_path)
    assert [(gpu.name, gpu.vram_bytes, gpu.basis) for gpu in found] == [
        ("NVIDIA L4", 24 * GIB, "nvidia-smi"),
        ("NVIDIA A2", 8 * GIB, "nvidia-smi"),
    ]
    for chosen, names in (("0", ["NVIDIA A2"]), ("GPU-b2", ["NVIDIA L4"]), ("", []), ("-1", [])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
        assert [gpu.name for gpu in gpus(tmp_path)] == names


def test_a_failing_nvidia_smi_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(tmp_path / "bin", "nvidia-smi", "NVIDIA-SMI has failed", code=9)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    if gpus_module._by_nvml() is not None:
        pytest.skip("a real NVIDIA driver answers here")
    assert gpus(tmp_path) == ()


def test_amd_cards_are_read_from_the_kernel(tmp_path: Path) -> None:
    card = "sys/class/drm/card0/device"
    root = tree(
        tmp_path,
        {
            f"{card}/vendor": "0x1002\n",
            f"{card}/mem_info_vram_total": f"{16 * GIB}\n",
            "sys/class/drm/card1/device/vendor": "0x8086\n",
            "sys/class/drm/card1/device/mem_info_vram_total": "1\n",
        },
    )
    machine = detect(tmp_path, root=root)
    assert [(gpu.vendor, gpu.vram_bytes) for gpu in machine.gpus] == [("amd", 16 * GIB)]
    assert machine.vram_bytes == 16 * GIB
