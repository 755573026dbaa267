# bridge: a web server in a network namespace of its group.
#
# Shows: bridge networking, a mapped port, a service with a health check in
#        Nomad's own service registry.
# Agent: the CNI plugins (client option `cni_path`). Python 3 installed.
#
#   nomad service info exec2-bridge        the address and the port

job "bridge" {
  type = "service"

  group "web" {
    # Deregister the service before the server stops.
    shutdown_delay = "2s"

    network {
      mode = "bridge"
      port "http" {
        to = 8000
      }
    }

    service {
      provider = "nomad"
      name     = "exec2-bridge"
      port     = "http"

      check {
        type     = "http"
        path     = "/index.html"
        interval = "5s"
        timeout  = "2s"
      }
    }

    task "python" {
      driver = "exec2"

      config {
        command = "python3"
        args    = ["-u", "-m", "http.server", "8000", "--directory", "${NOMAD_TASK_DIR}"]
      }

      template {
        destination = "local/index.html"
        data        = <<-EOH
          <!doctype html>
          <title>exec2</title>
          <p>Served from inside a network namespace.</p>
        EOH
      }

      resources {
        cpu    = 500
        memory = 128
      }
    }
  }
}
