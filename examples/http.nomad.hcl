# http: Python's web server serves a page that Nomad rendered.
#
# Shows: a service on the host's network, a template, an additional unveiled
#        file.
# Agent: unveil_by_task = true. Python 3 and /etc/mime.types installed; port
#        8181 free.
#
#   curl http://ADDRESS:8181/       ADDRESS: see `nomad alloc status ALLOC`

job "http" {
  type = "service"

  group "web" {
    network {
      mode = "host"
      port "http" {
        static = 8181
      }
    }

    task "python" {
      driver = "exec2"

      config {
        command = "python3"
        args    = ["-u", "-m", "http.server", "${NOMAD_PORT_http}", "--directory", "${NOMAD_TASK_DIR}"]

        # Python looks up content types in this file. It is also a default
        # unveil; this line shows how a job requests a path.
        unveil = ["r:/etc/mime.types"]
      }

      template {
        destination = "local/index.html"
        data        = <<-EOH
          <!doctype html>
          <title>exec2</title>
          <p>Served by {{ env "NOMAD_TASK_NAME" }} from its task directory.</p>
        EOH
      }

      resources {
        cpu    = 500
        memory = 128
      }
    }
  }
}
