//! OpenTelemetry's log records of exchanges, and their export over gRPC.

use std::time::UNIX_EPOCH;

use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsServiceRequest, logs_service_client::LogsServiceClient,
};
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue, KeyValueList, any_value};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message as _;
use serde_json::Value;
use tonic::transport::Channel;

use crate::config::snapshot::Node;
use crate::http::stats::ExchangeStats;

/// A record in wire form; `attributes` is an object.
pub fn record(stats: &ExchangeStats, body: Option<String>, attributes: Value) -> Vec<u8> {
    let since = stats.start_time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let trace = stats.trace.as_deref();
    let record = LogRecord {
        time_unix_nano: u64::try_from(since.as_nanos()).unwrap_or_default(),
        body: body.map(|text| any(Value::String(text))),
        attributes: match attributes {
            Value::Object(map) => pairs(map),
            _ => vec![],
        },
        trace_id: trace.map(|t| t.trace_id.to_vec()).unwrap_or_default(),
        span_id: trace.map(|t| t.span_id.to_vec()).unwrap_or_default(),
        ..LogRecord::default()
    };
    record.encode_to_vec()
}

fn pairs(map: serde_json::Map<String, Value>) -> Vec<KeyValue> {
    map.into_iter().map(|(key, value)| KeyValue { key, value: Some(any(value)), ..KeyValue::default() }).collect()
}

fn any(value: Value) -> AnyValue {
    use any_value::Value as V;
    let value = match value {
        Value::Null => None,
        Value::Bool(b) => Some(V::BoolValue(b)),
        Value::Number(n) => {
            Some(n.as_i64().map_or_else(|| V::DoubleValue(n.as_f64().unwrap_or_default()), V::IntValue))
        }
        Value::String(text) => Some(V::StringValue(text)),
        Value::Array(items) => Some(V::ArrayValue(ArrayValue { values: items.into_iter().map(any).collect() })),
        Value::Object(map) => Some(V::KvlistValue(KeyValueList { values: pairs(map) })),
    };
    AnyValue { value }
}

/// Sends records.
///
/// # Errors
/// The collector did not take them.
pub async fn export(channel: Channel, request: ExportLogsServiceRequest) -> Result<(), tonic::Status> {
    let answer = LogsServiceClient::new(channel).export(request).await?.into_inner();
    if let Some(partial) = answer.partial_success.filter(|p| p.rejected_log_records > 0) {
        let (n, why) = (partial.rejected_log_records, partial.error_message);
        tracing::warn!(target: "access_log", "the collector rejected {n} records: {why}");
    }
    Ok(())
}

/// With the resource as Envoy describes it.
pub fn request(node: &Node, log_name: &str, records: &[Vec<u8>]) -> ExportLogsServiceRequest {
    let facts = [
        ("log_name", log_name),
        ("zone_name", &*node.locality.zone),
        ("cluster_name", &node.cluster),
        ("node_name", &node.id),
    ];
    let text = |(key, value): (&str, &str)| KeyValue {
        key: key.to_owned(),
        value: Some(any(Value::String(value.to_owned()))),
        ..KeyValue::default()
    };
    let attributes = facts.into_iter().map(text).collect();
    // They have been written here: what cannot be read back does not exist.
    let log_records = records.iter().filter_map(|r| LogRecord::decode(&**r).ok()).collect();
    ExportLogsServiceRequest {
        resource_logs: vec![ResourceLogs {
            resource: Some(Resource { attributes, ..Resource::default() }),
            scope_logs: vec![ScopeLogs { log_records, ..ScopeLogs::default() }],
            ..ResourceLogs::default()
        }],
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use serde_json::json;

    use super::*;
    use crate::http::testing;

    #[tokio::test]
    async fn a_record_has_its_body_attributes_and_trace() {
        let mut stats = ExchangeStats::new(Rc::new(testing::conn()), &testing::get("a.test", "/"));
        stats.start_time = UNIX_EPOCH + std::time::Duration::from_millis(1500);
        stats.trace = Some(Box::new(crate::http::stats::TraceContext {
            trace_id: [1; 16],
            span_id: [2; 8],
            ..Default::default()
        }));
        let bytes = record(&stats, Some("line".to_owned()), json!({"code": 200, "in": {"ok": true}, "none": null}));
        let node = Node { id: "n".to_owned(), ..Node::default() };
        let request = request(&node, "log", &[bytes, b"\xff".to_vec()]);
        let resource = &request.resource_logs[0];
        let names: Vec<_> = resource.resource.as_ref().unwrap().attributes.iter().map(|a| a.key.as_str()).collect();
        assert_eq!(names, ["log_name", "zone_name", "cluster_name", "node_name"]);
        let [record] = &resource.scope_logs[0].log_records[..] else { panic!("{resource:?}") };
        assert_eq!((record.time_unix_nano, record.span_id.len()), (1_500_000_000, 8));
        assert_eq!(record.body, Some(any(json!("line"))));
        assert_eq!(record.attributes.iter().map(|a| a.key.as_str()).collect::<Vec<_>>(), ["code", "in", "none"]);
    }
}
