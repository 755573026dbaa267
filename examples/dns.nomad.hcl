# dns: a task in a network namespace asks the name servers that the job names.
#
# Shows: `network { dns }`. Each of the three lists is optional; what is left out is
#        taken from the host. Without `dns`, the task has the host's name servers; if the
#        host uses a local stub such as 127.0.0.53, which a network namespace cannot
#        reach, it has the servers behind the stub.
# Agent: the CNI plugins (client option `cni_path`).
#
#   nomad alloc logs -job dns        what the task finds in /etc/resolv.conf

job "dns" {
  type = "batch"

  group "g" {
    network {
      mode = "bridge"

      dns {
        servers  = ["192.0.2.53", "192.0.2.54"]
        searches = ["service.example", "example"]
        options  = ["timeout:2", "attempts:1"]
      }
    }

    task "show" {
      driver = "exec2"

      config {
        command = "cat"
        args    = ["/etc/resolv.conf"]
      }

      resources {
        cpu    = 100
        memory = 32
      }
    }
  }
}
