# resources: a task prints the limits that the kernel enforces.
#
# Shows: how `resources` maps to cgroup files. A task may read its own cgroup
#        without an unveil. With memory_max, `memory` sets the amount that the
#        kernel protects for the task (memory.low) and `memory_max` the hard
#        limit (memory.max), both in bytes; `cpu` in MHz sets the µs of CPU time
#        in each 100000 µs (cpu.max).
# Agent: nothing to set. Nomad ignores memory_max, and memory.max is 200 MiB,
#        until an operator enables memory oversubscription:
#          nomad operator scheduler set-config -memory-oversubscription=true

job "resources" {
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

    task "limits" {
      driver = "exec2"

      config {
        command = "sh"
        args = ["-c", <<-EOS
          cd "/sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)" || exit 1
          for file in memory.max memory.low cpu.max; do
            echo "$file: $(cat $file)"
          done
        EOS
        ]
      }

      resources {
        cpu        = 1000
        memory     = 200
        memory_max = 250
      }
    }
  }
}
