//! Istio's statistics filter: `stats.PluginConfig`, as a message or as the struct that stands for one.

use mesh_api::model::{IstioStats, MetricChange, Name};
use mesh_api::xds::google::protobuf::{Any, Duration};
use serde_json::Value;

use super::Result;
use super::at::At;
use super::values::duration_opt;

/// Of a message.
pub fn of_any(at: &At<'_>, any: &Any) -> Result<IstioStats> {
    convert(at, at.decode(&any.value)?)
}

/// Of the JSON form, with either spelling of names.
pub fn of_struct(at: &At<'_>, value: &Value) -> Result<IstioStats> {
    let get = |value: &Value, snake: &str, camel: &str| value.get(snake).or_else(|| value.get(camel)).cloned();
    let texts = |value: Option<Value>| -> Vec<String> {
        let items = value.as_ref().and_then(Value::as_array).into_iter().flatten();
        items.filter_map(|v| v.as_str().map(str::to_owned)).collect()
    };
    let metric = |value: &Value| {
        let labels = value.get("dimensions").and_then(Value::as_object).into_iter().flatten();
        MetricConfig {
            dimensions: labels.map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned())).collect(),
            name: value.get("name").and_then(Value::as_str).unwrap_or_default().to_owned(),
            tags_to_remove: texts(get(value, "tags_to_remove", "tagsToRemove")),
            drop: value.get("drop").and_then(Value::as_bool).unwrap_or_default(),
        }
    };
    let interval = get(value, "tcp_reporting_duration", "tcpReportingDuration");
    let seconds = interval.as_ref().and_then(Value::as_str).and_then(|t| t.strip_suffix('s')?.parse::<f64>().ok());
    let interval = seconds.and_then(|s| std::time::Duration::try_from_secs_f64(s).ok());
    let fallback = get(value, "disable_host_header_fallback", "disableHostHeaderFallback");
    let config = PluginConfig {
        disable_host_header_fallback: fallback.and_then(|v| v.as_bool()).unwrap_or_default(),
        tcp_reporting_duration: None,
        metrics: value.get("metrics").and_then(Value::as_array).into_iter().flatten().map(metric).collect(),
        definitions: value
            .get("definitions")
            .and_then(Value::as_array)
            .map(|d| vec![vec![]; d.len()])
            .unwrap_or_default(),
    };
    Ok(IstioStats { tcp_reporting: interval, ..convert(at, config)? })
}

#[derive(Clone, PartialEq, prost::Message)]
struct PluginConfig {
    #[prost(bool, tag = "6")]
    disable_host_header_fallback: bool,
    #[prost(message, optional, tag = "7")]
    tcp_reporting_duration: Option<Duration>,
    #[prost(message, repeated, tag = "8")]
    metrics: Vec<MetricConfig>,
    #[prost(bytes = "vec", repeated, tag = "9")]
    definitions: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct MetricConfig {
    #[prost(btree_map = "string, string", tag = "1")]
    dimensions: std::collections::BTreeMap<String, String>,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, repeated, tag = "3")]
    tags_to_remove: Vec<String>,
    #[prost(bool, tag = "5")]
    drop: bool,
}

fn convert(at: &At<'_>, config: PluginConfig) -> Result<IstioStats> {
    if !config.definitions.is_empty() {
        return at.field("definitions").refuse("metrics of one's own are not supported");
    }
    let metric = |m: MetricConfig| MetricChange {
        name: m.name.as_str().into(),
        dropped: m.drop,
        labels: m.dimensions.iter().map(|(k, v)| (Name::from(k.as_str()), Name::from(v.as_str()))).collect(),
        removed: m.tags_to_remove.iter().map(|t| t.as_str().into()).collect(),
    };
    Ok(IstioStats {
        disable_host_header_fallback: config.disable_host_header_fallback,
        tcp_reporting: duration_opt(&at.field("tcp_reporting_duration"), config.tcp_reporting_duration.as_ref())?,
        metrics: config.metrics.into_iter().map(metric).collect(),
    })
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_struct_means_what_the_message_means() {
        let message = PluginConfig {
            disable_host_header_fallback: true,
            tcp_reporting_duration: Some(Duration { seconds: 5, nanos: 500_000_000 }),
            metrics: vec![MetricConfig {
                dimensions: [("a".to_owned(), "request.host".to_owned())].into(),
                name: "requests_total".to_owned(),
                tags_to_remove: vec!["source_app".to_owned()],
                drop: false,
            }],
            definitions: vec![],
        };
        let any = Any { type_url: String::new(), value: message.encode_to_vec() };
        let of_any = of_any(&At::resource("l"), &any).unwrap();
        let metrics =
            json!([{"name": "requests_total", "dimensions": {"a": "request.host"}, "tags_to_remove": ["source_app"]}]);
        let value = json!({"disable_host_header_fallback": true, "tcp_reporting_duration": "5.5s", "metrics": metrics});
        assert_eq!(of_any, of_struct(&At::resource("l"), &value).unwrap());
        assert_eq!(of_any.metrics[0].labels, [("a".into(), "request.host".into())]);
        assert!(of_struct(&At::resource("l"), &json!({"definitions": [{"name": "x"}]})).is_err());
    }
}
