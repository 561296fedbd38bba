import json
import subprocess
import sys

import pytest

from graphprune.runtime import machine

XEON = """processor : 0
model name : Intel(R)  Xeon(R) Processor
physical id : 0
core id : 0
flags : fpu avx avx2 fma avx512f avx512_vnni amx_int8

processor : 1
model name : Intel(R) Xeon(R) Processor
physical id : 0
core id : 0

processor : 2
physical id : 0
core id : 1
"""
ARM = "processor\t: 0\nBogoMIPS\t: 243.75\nFeatures\t: fp asimd asimddp sve\n"


def facts(monkeypatch, cpu, architecture):
    monkeypatch.setattr(machine, "_processor", lambda: cpu)
    monkeypatch.setattr(machine.platform, "machine", lambda: architecture)
    return machine.machine_facts()


def test_cpuinfo_gives_name_flags_and_physical_cores():
    name, flags, cores = machine._parse_cpuinfo(XEON)
    assert name == "Intel(R) Xeon(R) Processor"
    assert {"avx512f", "avx512vnni", "amxint8"} <= flags
    assert cores == 2


def test_cpuinfo_of_arm_has_features_and_no_name():
    name, flags, cores = machine._parse_cpuinfo(ARM)
    assert (name, cores) == ("", None)
    assert {"asimd", "sve"} <= flags


@pytest.mark.parametrize(
    ("flags", "architecture", "level", "block"),
    [
        ({"avx512f", "avx2", "avx"}, "x86_64", "avx512", 16),
        ({"avx2", "avx"}, "AMD64", "avx2", 8),
        ({"sse41"}, "x86_64", "sse4.1", 8),
        (set(), "arm64", "neon", 1),
        ({"asimd"}, "aarch64", "neon", 1),
    ],
)
def test_instruction_set_and_block_of_onnxruntime(monkeypatch, flags, architecture, level, block):
    found = facts(monkeypatch, ("cpu", frozenset(flags), 1), architecture)
    assert (found.instruction_set, found.conv_block) == (level, block)


def test_features_are_named_as_linux_does_whatever_the_source(monkeypatch):
    found = facts(monkeypatch, ("cpu", machine._parse_cpuinfo(XEON)[1], 1), "x86_64")
    assert found.features == ("amx_int8", "avx512_vnni", "fma")


def test_facts_of_this_machine_are_json_and_one_line(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = machine.machine_facts()
    assert json.loads(json.dumps(found.to_dict()))["threads"]["OMP_NUM_THREADS"] == "3"
    assert found.onnxruntime
    assert found.logical_cores >= 1
    assert found.cpu in str(found)
    assert "\n" not in str(found)


def test_measuring_and_verifying_onnx_files_needs_no_torch():
    code = (
        "import sys, graphprune.report.summary, graphprune.verification.verify, graphprune.runtime.machine as m\n"
        "assert m.machine_facts().torch is None\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_torch_is_reported_once_it_is_imported():
    import torch

    found = machine.machine_facts()
    assert found.torch == torch.__version__
    assert found.threads["torch"] == str(torch.get_num_threads())
