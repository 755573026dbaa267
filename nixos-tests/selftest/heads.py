#!/usr/bin/env python3
"""The heads of the scenarios: what is read from them, what is refused, and that README.md has the same table."""

import contextlib
import sys
import tempfile
import unittest
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
sys.dont_write_bytecode = True
sys.path[:0] = [str(HERE), str(HERE / "lib")]

from runner import kernels, scenario
from runner.errors import RunnerError

README = HERE / "README.md"
BEGIN, END = "<!-- table: nixos-tests/run --table -->\n", "<!-- end of table -->"


@contextlib.contextmanager
def scenario_file(head: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sample.py"
        path.write_text(f"{head}\nprint()\n", encoding="utf-8")
        yield path


def head_of(*lines: str) -> str:
    return "\n".join(["# /// scenario", *(f"# {line}" for line in lines), "# ///"])


class Heads(unittest.TestCase):
    maxDiff = None

    def test_a_head_overrides_the_defaults(self) -> None:
        with scenario_file(head_of('description = "x"', 'kernels = ">= 6.1, < 6.7"', "shares_boot = false", 'packages.nix = ["git"]')) as path:
            found = scenario.parse(path)
        self.assertEqual((found.name, found.description, found.nomad, found.shares_boot), ("sample", "x", "both", False))
        self.assertEqual(found.packages, {"debian": [], "nix": ["git"]})
        self.assertIsNone(found.kernel_mismatch("6.1.170"))
        self.assertEqual(found.kernel_mismatch("6.12.9"), "for kernels < 6.7")

    def test_what_is_not_supported_is_refused(self) -> None:
        wrong = ['needs = "agent"', 'nomad = "podman"', 'guests = "debian"', 'payload = ["x"]', 'kernels = "new"', "memory_mib = true", "x ="]
        for line in wrong:
            with self.subTest(line), scenario_file(head_of('description = "x"', line)) as path, self.assertRaises(RunnerError):
                scenario.parse(path)
        for text in ("", "# nothing", "# /// scenario\n# description = 'x'", head_of()):
            with self.subTest(text), scenario_file(text) as path, self.assertRaises(RunnerError):
                scenario.parse(path)

    def test_each_kernel_has_a_scenario_that_is_for_it(self) -> None:
        everything = scenario.find_all()
        for kernel in kernels.KERNELS:
            version = "99.0" if kernel.label == "sid" else kernel.label
            across = [item.name for item in everything if item.across and not item.kernel_mismatch(version)]
            self.assertIn("boot", across)
            self.assertGreaterEqual(len(across), 2, kernel)

    def test_scenarios_are_chosen_by_name_pattern_and_path(self) -> None:
        self.assertEqual([item.name for item in scenario.choose(["process", "boot.py"])], ["process", "boot"])
        self.assertEqual({item.name for item in scenario.choose(["fingerprint_refused_*"])}, {"fingerprint_refused_kernel", "fingerprint_refused_lsm"})
        self.assertEqual(scenario.choose([str(HERE.parent / "scripts" / "demo.py")])[0].name, "demo")
        with self.assertRaises(RunnerError):
            scenario.choose(["no-such"])

    def test_the_readme_has_the_table_of_the_heads(self) -> None:
        text = README.read_text(encoding="utf-8")
        found = text.partition(BEGIN)[2].partition(END)[0]
        self.assertEqual(found.strip(), scenario.table().strip(), "copy the output of nixos-tests/run --table")


if __name__ == "__main__":
    unittest.main()
