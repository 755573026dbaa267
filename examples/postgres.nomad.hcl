# postgres: PostgreSQL as a dynamic user, with its data in a host volume.
#
# Shows: a program that is strict about the owner of its files, run by a user
#        whose uid changes at each start. A prestart task makes the database the
#        first time.
# Agent: PostgreSQL from the distribution, which the default unveils cover, and
#        the volume, whose directory does not belong to root:
#
#   client {
#     host_volume "exec2-postgres" {
#       path = "/srv/exec2-postgres"
#     }
#   }
#
#   install -d -o 900 -g 900 -m 700 /srv/exec2-postgres
#
# If its programs are in another directory:
#
#   nomad job run -var bin=/usr/lib/postgresql/16/bin postgres.nomad.hcl
#
# A shell of the database:
#
#   nomad alloc exec -task server ALLOC psql --host=/tmp -U postgres

variable "bin" {
  type        = string
  description = "Directory of initdb and postgres."
  default     = "/usr/lib/postgresql/17/bin"
}

job "postgres" {
  type = "service"

  group "postgres" {
    volume "data" {
      type   = "host"
      source = "exec2-postgres"
    }

    network {
      mode = "host"
      port "db" {}
    }

    task "initdb" {
      driver = "exec2"

      lifecycle {
        hook = "prestart"
      }

      volume_mount {
        volume      = "data"
        destination = "/var/lib/postgresql"
      }

      config {
        command = "sh"
        args = ["-c", <<-EOT
          [ -e /var/lib/postgresql/data/PG_VERSION ] ||
            exec ${var.bin}/initdb -D /var/lib/postgresql/data -U postgres --auth-local=trust --auth-host=scram-sha-256
        EOT
        ]
      }

      resources {
        cpu    = 500
        memory = 256
      }
    }

    task "server" {
      driver = "exec2"

      # A fast shutdown: it ends the clients' sessions.
      kill_signal  = "SIGINT"
      kill_timeout = "60s"

      volume_mount {
        volume      = "data"
        destination = "/var/lib/postgresql"
      }

      config {
        command = "${var.bin}/postgres"
        args = [
          "-D", "/var/lib/postgresql/data",
          "-p", "${NOMAD_PORT_db}",
          "-c", "listen_addresses=${NOMAD_IP_db}",
          "-c", "unix_socket_directories=/tmp",
        ]
      }

      env {
        PGPORT = "${NOMAD_PORT_db}"
      }

      resources {
        cpu    = 500
        memory = 256
      }
    }
  }
}
