//! The HTTP clients: few, because each reads the system's certificates and keeps its own connections.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use oci_client::Client;
use oci_client::client::{ClientConfig, ClientProtocol};

use super::{Endpoint, TransferLimits};
use crate::image::error::ImageError;
use crate::image::reference::Reference;

const USER_AGENT: &str = concat!("iii/", env!("CARGO_PKG_VERSION"));
/// Never connected to: naming any proxy switches the environment's proxies off.
const UNUSED_PROXY: &str = "http://127.0.0.1:9";

/// `*` matches names only.
const EVERYTHING: &str = "*,0.0.0.0/0,::/0";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Route {
    Https,
    /// Plain http to this machine: a proxy could not reach it.
    Loopback,
    /// Plain http to a registry the user named.
    Plain,
}

/// One client per way of reaching registries, made when first needed.
#[derive(Clone, Default)]
pub(in crate::image) struct Clients {
    made: Arc<Mutex<HashMap<Route, Client>>>,
}

impl Clients {
    /// The client for a server; the reference is for messages.
    pub(super) async fn get(
        &self,
        reference: &Reference,
        endpoint: &Endpoint,
        limits: &TransferLimits,
    ) -> Result<Client, ImageError> {
        let route = match (endpoint.plain_http, endpoint.is_loopback()) {
            (false, _) => Route::Https,
            (true, true) => Route::Loopback,
            (true, false) => Route::Plain,
        };
        let known = self.made.lock().unwrap_or_else(PoisonError::into_inner).get(&route).cloned();
        if let Some(client) = known {
            return Ok(client);
        }
        let config = config(route, limits);
        // Reading the certificate store is blocking file work.
        let made = tokio::task::spawn_blocking(move || Client::try_from(config))
            .await
            .map_err(|e| ImageError::Internal { reference: reference.to_string(), reason: e.to_string() })?
            .map_err(|e| ImageError::Setup { reason: super::failure::innermost(&e) })?;
        self.made.lock().unwrap_or_else(PoisonError::into_inner).insert(route, made.clone());
        Ok(made)
    }
}

fn config(route: Route, limits: &TransferLimits) -> ClientConfig {
    let mut config = ClientConfig {
        protocol: match route {
            Route::Https => ClientProtocol::Https,
            Route::Loopback | Route::Plain => ClientProtocol::Http,
        },
        // Platforms are chosen by this crate; the default asks for the host's own system.
        platform_resolver: None,
        connect_timeout: Some(limits.connect_timeout),
        read_timeout: Some(limits.stall_timeout),
        user_agent: USER_AGENT,
        ..ClientConfig::default()
    };
    if route == Route::Loopback {
        config.http_proxy = Some(UNUSED_PROXY.to_owned());
        config.no_proxy = Some(EVERYTHING.to_owned());
    }
    config
}
