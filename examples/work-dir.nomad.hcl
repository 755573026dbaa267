# work-dir: a command starts in a directory that the job chooses.
#
# Shows: work_dir, here relative to the directory that holds local/, secrets/
#        and tmp/. An absolute path works too; outside the allocation it needs
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
