# cores: a task that reserves one core instead of a share in MHz.
#
# Shows: `cores`; the task prints the CPUs that it may run on and its cpu.max.
# Agent: nothing to set. Nomad reserves cores only if the client runs as root
#        with cgroups v2, which this driver requires anyway.

job "cores" {
  type = "batch"

  group "group" {
    restart {
      attempts = 0
      mode     = "fail"
    }

    reschedule {
      attempts  = 0
      unlimited = false
    }

    task "one-core" {
      driver = "exec2"

      config {
        command = "sh"
        args = ["-c", <<-EOS
          grep Cpus_allowed_list /proc/self/status
          echo "cpu.max: $(cat "/sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)/cpu.max")"
        EOS
        ]
      }

      resources {
        cores  = 1
        memory = 32
      }
    }
  }
}
