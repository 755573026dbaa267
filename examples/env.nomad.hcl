# env: a batch task that prints its environment.
#
# Shows: the smallest job, run as a dynamic user (`user` is not set).
# Agent: nothing to set.

job "env" {
  type = "batch"

  group "env" {
    restart {
      attempts = 0
      mode     = "fail"
    }

    reschedule {
      attempts  = 0
      unlimited = false
    }

    task "env" {
      driver = "exec2"

      config {
        command = "env"
      }

      resources {
        cpu    = 100
        memory = 32
      }
    }
  }
}
