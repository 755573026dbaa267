# network-policy: a server that may only listen on its port, and a client that
# may only connect to it, on the host's network and in one of the group's own.
#
# Shows: the driver's option `network_policy` with the label of a port.
# Agent: Linux 6.7 or later (Landlock ABI 4), Python 3 installed; for the group
#        "bridge" the CNI plugins (client option `cni_path`).
#
#   nomad alloc logs ALLOC client      http: answered, port 22: denied
#   nomad alloc logs ALLOC server      another port: denied

locals {
  server = <<-EOH
    import os, socket
    try:
        socket.create_server(("127.0.0.1", 0))
    except PermissionError:
        print("another port: denied", flush=True)
    server = socket.create_server(("127.0.0.1", int(os.environ["NOMAD_PORT_http"])))
    while True:
        server.accept()[0].close()
  EOH

  client = <<-EOH
    import os, socket, time
    def connect(port):
        try:
            socket.create_connection(("127.0.0.1", port))
            return "answered"
        except PermissionError:
            return "denied"
        except ConnectionRefusedError:
            return "refused"
    port = int(os.environ["NOMAD_PORT_http"])
    while connect(port) == "refused":
        time.sleep(0.2)
    print("http:", connect(port))
    print("port 22:", connect(22))
  EOH
}

job "network-policy" {
  type = "batch"

  group "bridge" {
    network {
      mode = "bridge"
      port "http" {
        to = 8000
      }
    }

    task "server" {
      driver = "exec2"
      lifecycle {
        hook    = "prestart"
        sidecar = true
      }
      config {
        command  = "python3"
        args     = ["local/server.py"]
        work_dir = "."
        network_policy {
          bind    = ["http"]
          connect = []
        }
      }
      template {
        destination = "local/server.py"
        data        = local.server
      }
      resources {
        cpu    = 500
        memory = 64
      }
    }

    task "client" {
      driver = "exec2"
      config {
        command  = "python3"
        args     = ["local/client.py"]
        work_dir = "."
        network_policy {
          bind    = []
          connect = ["http"]
        }
      }
      template {
        destination = "local/client.py"
        data        = local.client
      }
      resources {
        cpu    = 500
        memory = 64
      }
    }
  }

  group "host" {
    network {
      port "http" {}
    }

    task "server" {
      driver = "exec2"
      lifecycle {
        hook    = "prestart"
        sidecar = true
      }
      config {
        command  = "python3"
        args     = ["local/server.py"]
        work_dir = "."
        network_policy {
          bind    = ["http"]
          connect = []
        }
      }
      template {
        destination = "local/server.py"
        data        = local.server
      }
      resources {
        cpu    = 500
        memory = 64
      }
    }

    task "client" {
      driver = "exec2"
      config {
        command  = "python3"
        args     = ["local/client.py"]
        work_dir = "."
        network_policy {
          bind    = []
          connect = ["http"]
        }
      }
      template {
        destination = "local/client.py"
        data        = local.client
      }
      resources {
        cpu    = 500
        memory = 64
      }
    }
  }
}
