# secrets: a task reads its workload identity from its secrets directory.
#
# Shows: a secret file that only this task can read; and that the task has
#        no /var/log, which every user of the host may list. The token is not
#        printed, because a task's output is kept in its logs.
# Agent: nothing to set.

job "secrets" {
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

    task "read" {
      driver = "exec2"

      config {
        command = "sh"
        args = ["-c", <<-EOS
          bytes=$(wc -c < "$NOMAD_SECRETS_DIR/nomad_token") || exit 1
          echo "nomad_token: $bytes bytes"
          if ls /var/log; then
            echo "/var/log can be listed: this should not be" >&2
            exit 1
          fi
          echo "/var/log: absent, as it should be"
        EOS
        ]
      }

      # Writes the token to secrets/nomad_token instead of the environment.
      identity {
        env  = false
        file = true
      }

      resources {
        cpu    = 100
        memory = 32
      }
    }
  }
}
