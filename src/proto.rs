//! The wire contracts of `proto/` as Rust types: prost messages, tonic servers, and clients for the tests.
//!
//! Only `driver` should need them; the other modules have types of their own.

#[allow(
    clippy::all,
    clippy::too_many_lines,
    missing_debug_implementations,
    unreachable_pub,
    reason = "generated code: a Debug, a variant's size or a visibility is not ours to change there"
)]
mod wire {
    include!(concat!(env!("OUT_DIR"), "/wire.rs"));
}

pub use wire::hashicorp::nomad::plugins::base::proto as base;
pub use wire::hashicorp::nomad::plugins::drivers::proto as driver;
pub use wire::hashicorp::nomad::plugins::shared::hclspec;
pub use wire::hashicorp::nomad::plugins::shared::structs;

/// Type URL of [`structs::RecoverableError`] in the details of a gRPC status. Nomad's client compares it literally.
pub const RECOVERABLE_ERROR_TYPE_URL: &str =
    "type.googleapis.com/hashicorp.nomad.plugins.shared.structs.RecoverableError";

/// Shows the task's id only: the environment and the config hold the task's secrets, which a `{:?}` in a log line must not
/// show.
impl std::fmt::Debug for driver::TaskConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TaskConfig")
            .field("id", &self.id)
            .field("name", &self.name)
            .field("user", &self.user)
            .field("alloc_dir", &self.alloc_dir)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    /// Field number and wire type of every field of an encoded message, in order.
    fn keys(mut buf: &[u8]) -> Vec<(u32, prost::encoding::WireType)> {
        let mut keys = Vec::new();
        while !buf.is_empty() {
            let (tag, wire_type) = prost::encoding::decode_key(&mut buf).unwrap();
            let ctx = prost::encoding::DecodeContext::default();
            prost::encoding::skip_field(wire_type, tag, &mut buf, ctx).unwrap();
            keys.push((tag, wire_type));
        }
        keys
    }

    fn numbers(message: &impl Message) -> Vec<u32> {
        keys(&message.encode_to_vec()).into_iter().map(|(tag, _)| tag).collect()
    }

    #[test]
    fn debug_shows_no_secret() {
        let task = driver::TaskConfig {
            id: "a1/web/0".into(),
            env: [("DB_PASSWORD".to_string(), "hunter2".to_string())].into(),
            msgpack_driver_config: b"hunter2".to_vec(),
            ..Default::default()
        };
        let text = format!("{:?}", driver::StartTaskRequest { task: Some(task) });
        assert!(text.contains("a1/web/0"), "{text}");
        // Otherwise a byte string is printed as a list of numbers.
        assert!(!text.contains("hunter2") && !text.contains("104, 117"), "{text}");
    }

    #[test]
    fn services_have_the_names_of_the_wire() {
        use tonic::server::NamedService;
        fn name<S: NamedService>() -> &'static str {
            S::NAME
        }
        struct Nothing;
        assert_eq!(
            name::<base::base_plugin_server::BasePluginServer<Nothing>>(),
            "hashicorp.nomad.plugins.base.proto.BasePlugin"
        );
        assert_eq!(
            name::<driver::driver_server::DriverServer<Nothing>>(),
            "hashicorp.nomad.plugins.drivers.proto.Driver"
        );
    }

    #[test]
    fn fields_out_of_order_keep_their_numbers() {
        // Numbers that are out of order on the wire and must stay so.
        let memory = driver::MemoryUsage {
            rss: 1,
            cache: 1,
            max_usage: 1,
            kernel_usage: 1,
            kernel_max_usage: 1,
            measured_fields: vec![driver::memory_usage::Fields::Swap as i32],
            usage: 1,
            swap: 1,
        };
        let mut sorted = numbers(&memory);
        sorted.sort_unstable();
        assert_eq!(sorted, [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(numbers(&driver::MemoryUsage { usage: 1, ..Default::default() }), [7]);
        assert_eq!(numbers(&driver::MemoryUsage { swap: 1, ..Default::default() }), [8]);
        let linux = driver::LinuxResources { cpuset_cgroup: "x".into(), ..Default::default() };
        assert_eq!(numbers(&linux), [9]);
        let linux = driver::LinuxResources { percent_ticks: 0.5, ..Default::default() };
        assert_eq!(
            keys(&linux.encode_to_vec()),
            [(8, prost::encoding::WireType::SixtyFourBit)],
            "a double, not a varint"
        );
        let networks = driver::AllocatedTaskResources {
            networks: vec![driver::NetworkResource::default()],
            ..Default::default()
        };
        assert_eq!(numbers(&networks), [5]);
        assert_eq!(numbers(&driver::AllocatedMemoryResources { memory_mb: 1, memory_max_mb: -1 }), [2, 3]);
        let capabilities = driver::DriverCapabilities {
            disable_log_collection: true,
            dynamic_workload_users: true,
            ..Default::default()
        };
        assert_eq!(numbers(&capabilities), [8, 9]);
        assert_eq!(base::PluginType::Driver as i32, 2);
    }

    #[test]
    fn an_older_field_is_skipped() {
        // DriverCapabilities.remote_tasks (7, varint) as Nomad 1.8 has it, followed by dynamic_workload_users.
        let bytes = [7 << 3, 1, 9 << 3, 1];
        let capabilities = driver::DriverCapabilities::decode(&bytes[..]).unwrap();
        assert!(capabilities.dynamic_workload_users);
    }

    #[test]
    fn recoverable_error_is_an_any_of_the_right_type() {
        let detail = prost_types::Any {
            type_url: RECOVERABLE_ERROR_TYPE_URL.into(),
            value: structs::RecoverableError { recoverable: true }.encode_to_vec(),
        };
        assert_eq!(detail.value, [8, 1]);
        assert!(
            RECOVERABLE_ERROR_TYPE_URL.ends_with("/hashicorp.nomad.plugins.shared.structs.RecoverableError")
        );
    }
}
