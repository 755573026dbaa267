# java: compile a class in a prestart task, run it in the main task.
#
# Shows: two tasks that share the alloc directory, a runtime whose files lie
#        outside the default unveils, and that it sizes itself by the task's
#        cpu and memory.
# Agent: unveil_by_task = true. A JDK (javac and java) installed.
#
# The defaults fit OpenJDK 21 as Debian 13 and Ubuntu 24.04 package it. For
# another JDK, for instance 17 on Debian 12:
#
#   nomad job run -var etcjava=/etc/java-17-openjdk java.nomad.hcl

variable "javabin" {
  type        = string
  description = "Directory of the programs java and javac."
  default     = "/usr/bin"
}

variable "etcjava" {
  type        = string
  description = "Directory of the JDK's configuration files."
  default     = "/etc/java-21-openjdk"
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
        unveil  = ["r:${var.etcjava}"]
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
        unveil  = ["r:${var.etcjava}"]
      }

      resources {
        cpu    = 1000
        memory = 512
      }
    }
  }
}
