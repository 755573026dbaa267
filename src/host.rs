//! (in progress)
#[derive(Debug)]
pub enum Health {
    Healthy,
    Unhealthy(String),
    Undetected(String),
}
#[derive(Debug)]
pub struct Host {
    pub landlock_abi: Option<u32>,
    pub controllers: Vec<String>,
}
impl Host {
    pub fn health(&self) -> Health {
        Health::Healthy
    }
}
pub fn probe() -> Host {
    Host { landlock_abi: Some(6), controllers: vec![] }
}
