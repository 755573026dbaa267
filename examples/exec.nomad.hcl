# exec: a script that Nomad runs in the task when a template changes, and an
# action for operators.
#
# Shows: commands in a running task: as its user, in its root directory, with
#        its environment, within its limits, and gone when it ends.
# Agent: nothing to set.
#
#   nomad var put nomad/jobs/exec greeting=hello     the script runs
#   nomad action -job exec -task main -group group show
#   nomad alloc exec -task main ALLOC sh

job "exec" {
  type = "service"

  group "group" {
    task "main" {
      driver = "exec2"

      config {
        command = "sleep"
        args    = ["infinity"]
      }

      template {
        data                 = "{{ with nomadVar \"nomad/jobs/exec\" }}{{ .greeting }}{{ end }}\n"
        destination          = "local/greeting"
        change_mode          = "script"
        error_on_missing_key = false

        change_script {
          command       = "sh"
          args          = ["-c", "cp $NOMAD_TASK_DIR/greeting $NOMAD_TASK_DIR/seen"]
          timeout       = "20s"
          fail_on_error = true
        }
      }

      action "show" {
        command = "cat"
        args    = ["seen"]
      }

      # With Consul, Nomad also runs health checks in the task:
      #
      #   service {
      #     name = "exec2-exec"
      #
      #     check {
      #       type     = "script"
      #       command  = "test"
      #       args     = ["-e", "greeting"]
      #       interval = "10s"
      #       timeout  = "5s"
      #     }
      #   }

      resources {
        cpu    = 100
        memory = 32
      }
    }
  }
}
