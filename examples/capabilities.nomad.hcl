# capabilities: a dynamic user listens on port 80.
#
# Shows: cap_add. The agent decides which capabilities a job may request; a job
#        that requests another one does not start.
# Agent: the default allow_caps has net_bind_service. Python 3 installed; port
#        80 free.

job "capabilities" {
  type = "service"

  group "web" {
    network {
      mode = "host"
      port "http" {
        static = 80
      }
    }

    task "python" {
      driver = "exec2"

      config {
        command = "python3"
        args    = ["-u", "-m", "http.server", "${NOMAD_PORT_http}", "--directory", "${NOMAD_TASK_DIR}"]
        cap_add = ["net_bind_service"]
      }

      template {
        destination = "local/index.html"
        data        = <<-EOH
          <!doctype html>
          <title>exec2</title>
          <p>Served on port 80 by a user who is not root.</p>
        EOH
      }

      resources {
        cpu    = 500
        memory = 128
      }
    }
  }
}
