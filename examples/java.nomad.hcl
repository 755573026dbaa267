# java: a prestart task compiles a class, the main task runs it.
#
# Shows: two tasks that share the alloc directory, and a runtime that sizes
#        itself by the task's cpu and memory.
# Agent: nothing to set. A JDK (javac and java) from the distribution, which
#        the default unveils cover.
#
# If javac and java are in another directory:
#
#   nomad job run -var javabin=/usr/lib/jvm/java-17-openjdk-amd64/bin java.nomad.hcl

variable "javabin" {
  type        = string
  description = "Directory of java and javac."
  default     = "/usr/bin"
}

job "java" {
  type = "batch"

  group "java" {
    restart {
      attempts = 0
      mode     = "fail"
    }

    reschedule {
      attempts  = 0
      unlimited = false
    }

    task "compile" {
      driver = "exec2"

      lifecycle {
        hook    = "prestart"
        sidecar = false
      }

      config {
        command = "${var.javabin}/javac"
        args    = ["-d", "${NOMAD_ALLOC_DIR}/data", "${NOMAD_TASK_DIR}/Test.java"]
      }

      template {
        destination = "local/Test.java"
        data        = <<-EOH
          public class Test {
              public static void main(String[] args) {
                  Runtime runtime = Runtime.getRuntime();
                  System.out.println("hello from java " + System.getProperty("java.version"));
                  System.out.println("processors: " + runtime.availableProcessors());
                  System.out.println("heap, MiB: " + runtime.maxMemory() / 1024 / 1024);
              }
          }
        EOH
      }

      resources {
        cpu    = 1000
        memory = 512
      }
    }

    task "main" {
      driver = "exec2"

      config {
        command = "${var.javabin}/java"
        args    = ["-cp", "${NOMAD_ALLOC_DIR}/data", "Test"]
      }

      resources {
        cpu    = 1000
        memory = 512
      }
    }
  }
}
