# The machine itself: kernel, systemd, unified cgroups, and the Landlock ABI that the kernel's version promises.
# kernels: any
# lsm: any
# needs: no-agent

machine.wait_for_unit("multi-user.target")
