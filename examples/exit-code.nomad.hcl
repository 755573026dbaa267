# exit-code: a script fails, and Nomad reports its exit code.
#
# Shows: a rendered script as the command; `nomad alloc status` shows
#        "Exit Code: 7", and the allocation fails.
# Agent: nothing to set.

job "exit-code" {
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

    task "fail" {
      driver = "exec2"

      config {
        command = "${NOMAD_TASK_DIR}/fail.sh"
      }

      template {
        destination = "local/fail.sh"
        perms       = "755"
        data        = <<-EOH
          #!/bin/sh
          echo "about to exit with 7"
          exit 7
        EOH
      }

      resources {
        cpu    = 100
        memory = 32
      }
    }
  }
}
