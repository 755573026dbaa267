# work-dir: start a command in a directory of the task's choice.
#
# Shows: work_dir, here relative to the directory that holds local/, secrets/
#        and tmp/. An absolute path works too; one outside the alloc needs
#        unveil_by_task = true in the agent.
# Agent: nothing to set.

job "work-dir" {
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

    task "cat" {
      driver = "exec2"

      config {
        command  = "cat"
        args     = ["greeting.txt"]
        work_dir = "local/site"
      }

      template {
        destination = "local/site/greeting.txt"
        data        = "read by a relative path\n"
      }

      resources {
        cpu    = 100
        memory = 32
      }
    }
  }
}
