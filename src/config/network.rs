//! The options of `network_policy`.

use super::cty::Value;
use super::row::Form;
use super::table::{Kind, NULL, options};
use super::{At, ConfigError, hclspec};
use crate::quote::quote;
use crate::sandbox::network::{AbstractSockets, Lists, PortName, Unsupported};

/// Longest list.
const NAMES_MAX: usize = 1024;

options! {
    /// What the operator allows, and what tasks have whose jobs do not say.
    #[derive(Clone, PartialEq, Eq)]
    pub struct AgentNetwork {
        /// ports of TCP to which tasks may bind
        pub bind: Option<Vec<PortName>> = PortList { labels: false },
        /// ports of TCP to which tasks may connect
        pub connect: Option<Vec<PortName>> = PortList { labels: false },
        /// ports of UDP to which tasks may bind
        pub bind_udp: Option<Vec<PortName>> = PortList { labels: false },
        /// ports of UDP to which tasks may send
        pub connect_udp: Option<Vec<PortName>> = PortList { labels: false },
        /// what becomes of a task if the kernel lacks what a list needs
        pub unsupported: Unsupported = IfUnsupported,
    }
}

options! {
    /// What a job wants for its task.
    #[derive(Clone, PartialEq, Eq)]
    pub struct TaskNetwork {
        /// ports of TCP to which the task may bind
        pub bind: Option<Vec<PortName>> = PortList { labels: true },
        /// ports of TCP to which the task may connect
        pub connect: Option<Vec<PortName>> = PortList { labels: true },
        /// ports of UDP to which the task may bind
        pub bind_udp: Option<Vec<PortName>> = PortList { labels: true },
        /// ports of UDP to which the task may send
        pub connect_udp: Option<Vec<PortName>> = PortList { labels: true },
    }
}

impl AgentNetwork {
    pub(super) fn lists(&self) -> Lists<'_> {
        Lists([&self.bind, &self.connect, &self.bind_udp, &self.connect_udp].map(Option::as_deref))
    }
}

impl TaskNetwork {
    pub(super) fn lists(&self) -> Lists<'_> {
        Lists([&self.bind, &self.connect, &self.bind_udp, &self.connect_udp].map(Option::as_deref))
    }
}

/// A list of ports. No list is no limit, and an empty one allows none.
struct PortList {
    /// A job may name ports by their labels; the agent does not know those of its jobs.
    labels: bool,
}

impl PortList {
    fn write(&self) -> &'static str {
        if self.labels {
            r#"a port such as "8080", a range such as "8000-8010", the label of a port, or "@allocated""#
        } else {
            r#"a port such as "8080", a range such as "8000-8010", or "@allocated""#
        }
    }
}

impl Kind for PortList {
    type Value = Option<Vec<PortName>>;
    const FORM: Form = Form::Attribute(hclspec::STRINGS);
    const TAKES: &str = "list of ports";

    fn unset(&self) -> Result<Self::Value, &'static str> {
        Ok(None)
    }

    fn read(&self, at: &At, value: Value) -> Result<Self::Value, ConfigError> {
        let names = value.texts(at)?;
        at.at_most(names.len(), NAMES_MAX)?;
        let parse = |(i, name): (usize, &String)| {
            let refuse = |problem| at.element(i).bad_value(quote(name), problem, self.write());
            match name.parse().map_err(refuse)? {
                PortName::Label(_) if !self.labels => Err(refuse("it is not a port")),
                name => Ok(name),
            }
        };
        names.iter().enumerate().map(parse).collect::<Result<_, _>>().map(Some)
    }

    fn show(&self, value: &Self::Value) -> String {
        let Some(names) = value else { return NULL.to_owned() };
        let names: Vec<_> = names.iter().map(|name| quote(&name.to_string())).collect();
        format!("[{}]", names.join(", "))
    }
}

/// `abstract_sockets`.
pub(super) struct WhoseSockets;

impl Kind for WhoseSockets {
    type Value = AbstractSockets;
    const FORM: Form = Form::Attribute(hclspec::STRING);
    const TAKES: &str = r#"`"own"` or `"host"`"#;

    fn unset(&self) -> Result<AbstractSockets, &'static str> {
        Ok(AbstractSockets::default())
    }

    fn read(&self, at: &At, value: Value) -> Result<AbstractSockets, ConfigError> {
        match value.text(at)?.as_str() {
            "own" => Ok(AbstractSockets::Own),
            "host" => Ok(AbstractSockets::Host),
            other => Err(at.bad_value(quote(other), "there is no such choice", r#""own" or "host""#)),
        }
    }

    fn show(&self, value: &AbstractSockets) -> String {
        quote(match value {
            AbstractSockets::Own => "own",
            AbstractSockets::Host => "host",
        })
    }
}

/// `unsupported`.
struct IfUnsupported;

impl Kind for IfUnsupported {
    type Value = Unsupported;
    const FORM: Form = Form::Attribute(hclspec::STRING);
    const TAKES: &str = r#"`"error"` or `"ignore"`"#;

    fn unset(&self) -> Result<Unsupported, &'static str> {
        Ok(Unsupported::default())
    }

    fn read(&self, at: &At, value: Value) -> Result<Unsupported, ConfigError> {
        match value.text(at)?.as_str() {
            "error" => Ok(Unsupported::Error),
            "ignore" => Ok(Unsupported::Ignore),
            other => Err(at.bad_value(quote(other), "there is no such choice", r#""error" or "ignore""#)),
        }
    }

    fn show(&self, value: &Unsupported) -> String {
        quote(match value {
            Unsupported::Error => "error",
            Unsupported::Ignore => "ignore",
        })
    }
}
