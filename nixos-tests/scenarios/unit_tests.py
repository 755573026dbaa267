# /// scenario
# description = "The unit tests that need root and cgroup v2."
# across = "the wrappers of system calls"
# nomad = "none"
# guests = ["debian"]
# payload = ["unit-tests"]
# seconds = 10
# ///

from exec2.guest import machine, subtest, t

TESTS = "/usr/local/libexec/exec2-unit-tests"

with subtest("every ignored test runs and passes"):
    listed = machine.succeed(f"{TESTS} --ignored --list").splitlines()
    wanted = [line for line in listed if line.endswith(": test")]
    t.assertGreater(len(wanted), 0)
    output = machine.succeed(f"{TESTS} --ignored --test-threads=1 2>&1")
    t.assertIn(f"test result: ok. {len(wanted)} passed; 0 failed; 0 ignored", output)
