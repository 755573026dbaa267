# volume: keeps a file in a host volume from one run to the next.
#
# Shows: a volume at a path of its own. The task has no user, so it has another
#        uid each time; the files belong to the owner of the volume's directory
#        all the same. The second mount, of the same volume, is read-only.
# Agent: the volume, whose directory does not belong to root:
#
#   client {
#     host_volume "exec2-example" {
#       path = "/srv/exec2-example"
#     }
#   }
#
#   install -d -o 900 -g 900 -m 750 /srv/exec2-example
#
# Run it twice; the second run prints the lines of both.

job "volume" {
  type = "batch"

  group "volume" {
    volume "data" {
      type   = "host"
      source = "exec2-example"
    }

    restart {
      attempts = 0
      mode     = "fail"
    }

    reschedule {
      attempts  = 0
      unlimited = false
    }

    task "volume" {
      driver = "exec2"

      volume_mount {
        volume      = "data"
        destination = "/data"
      }

      volume_mount {
        volume      = "data"
        destination = "${NOMAD_TASK_DIR}/seen"
        read_only   = true
      }

      config {
        command = "sh"
        args = ["-c", <<-EOT
          set -e
          echo "written as $(id -un)" >> /data/lines
          cat "$NOMAD_TASK_DIR/seen/lines"
          if [ -O /data/lines ]; then echo "all of it is this task's"; fi
          if echo no >> "$NOMAD_TASK_DIR/seen/lines"; then exit 1; fi
        EOT
        ]
      }

      resources {
        cpu    = 100
        memory = 64
      }
    }
  }
}
