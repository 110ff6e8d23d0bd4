//! WasmPlugin and TrafficExtension: what is wrong with them, and that they do not run.

use mesh_api::crd::extensions::{TrafficExtension, TrafficSelector, WasmPlugin};

use super::{checks::Report, codes, finding::Finding, security::targets};
use crate::index::extensions::{extension_fails_closed, plugin_fails_closed};

pub(super) fn wasm_plugin(plugin: &WasmPlugin, out: &mut Report) {
    targets(plugin.selector.as_ref(), plugin.target_ref.as_ref(), &plugin.target_refs, out);
    module(&plugin.url, &plugin.sha256, "spec", out);
    ports(&plugin.matches, out);
    does_not_run(plugin_fails_closed(plugin), out);
}

pub(super) fn traffic_extension(extension: &TrafficExtension, out: &mut Report) {
    targets(extension.selector.as_ref(), None, &extension.target_refs, out);
    if extension.wasm.is_some() == extension.lua.is_some() {
        out.error("spec", "one of wasm and lua is required");
    }
    if let Some(wasm) = &extension.wasm {
        module(&wasm.url, &wasm.sha256, "spec.wasm", out);
    }
    ports(&extension.matches, out);
    does_not_run(extension_fails_closed(extension), out);
}

fn module(url: &str, sha256: &str, field: &str, out: &mut Report) {
    // Without a scheme it is an image.
    let known = url.split_once("://").is_none_or(|(scheme, _)| matches!(scheme, "oci" | "http" | "https" | "file"));
    if url.is_empty() {
        out.error(format!("{field}.url"), "is required");
    } else if !known {
        out.error(format!("{field}.url"), "must be oci://, http://, https:// or file://");
    }
    if !sha256.is_empty() && (sha256.len() != 64 || !sha256.bytes().all(|b| b.is_ascii_hexdigit())) {
        out.error(format!("{field}.sha256"), "is not 64 hexadecimal digits");
    }
}

fn ports(matches: &[TrafficSelector], out: &mut Report) {
    for (i, selector) in matches.iter().enumerate() {
        for (j, port) in selector.ports.iter().enumerate() {
            out.port(&format!("spec.match[{i}].ports[{j}].number"), port.number);
        }
    }
}

fn does_not_run(closed: bool, out: &mut Report) {
    let what = if closed {
        "no proxy of this mesh runs extensions: requests to whom it is for are refused, as it fails closed"
    } else {
        "no proxy of this mesh runs extensions: requests pass without it"
    };
    out.push(Finding::warning("spec", what).code(codes::NOT_RUN));
}
