{{- /* What names of this revision end with. */ -}}
{{- define "istiod.suffix" -}}
{{- if and .Values.revision (ne .Values.revision "default") }}-{{ .Values.revision }}{{ end }}
{{- end -}}

{{- define "istiod.name" -}}
istiod{{ include "istiod.suffix" . }}
{{- end -}}

{{- define "istiod.revision" -}}
{{ .Values.revision | default "default" }}
{{- end -}}

{{- /* Names of what belongs to no namespace end with the namespace, so that two control planes do not share it. */ -}}
{{- define "istiod.clusterName" -}}
{{ include "istiod.suffix" . }}-{{ .Release.Namespace }}
{{- end -}}

{{- /* Labels of every object; with more of them: dict "root" . "more" DICT. Ours win: uninstalling goes by them. */ -}}
{{- define "istiod.labels" -}}
{{- $root := .root | default . -}}
{{- $own := dict "app" "istiod" "istio" "pilot" "istio.io/rev" (include "istiod.revision" $root) -}}
{{- $release := dict "app.kubernetes.io/name" "istiod" "app.kubernetes.io/instance" $root.Release.Name "app.kubernetes.io/part-of" "istio" "app.kubernetes.io/managed-by" $root.Release.Service "app.kubernetes.io/version" $root.Chart.AppVersion "operator.istio.io/component" "Pilot" -}}
{{- toYaml (merge $own $release (.more | default dict)) }}
{{- end -}}

{{- /* A text or number as text. What Go itself makes of a large number has an exponent. */ -}}
{{- define "istiod.text" -}}
{{- if kindIs "string" . }}{{ . }}{{ else }}{{ toJson . }}{{ end }}
{{- end -}}

{{- /* Namespace of the control plane. */ -}}
{{- define "istiod.namespace" -}}
{{- $named := .Values.global.istioNamespace -}}
{{- if and $named (ne $named .Release.Namespace) -}}
{{- fail (printf "global.istioNamespace is %s, but the release goes to %s: name the same namespace twice, or leave global.istioNamespace empty" $named .Release.Namespace) -}}
{{- end -}}
{{ .Release.Namespace }}
{{- end -}}

{{- /* Whether a disruption may take one pod and leave another; text, empty for no. */ -}}
{{- define "istiod.several" -}}
{{- $pilot := .Values.pilot -}}
{{- $least := $pilot.replicaCount -}}
{{- if $pilot.autoscaleEnabled }}{{ $least = $pilot.autoscaleMin }}{{ end -}}
{{- if gt (int $least) 1 }}yes{{ end -}}
{{- end -}}

{{- /* A whole image reference: dict "image" NAME "hub" HUB "tag" TAG */ -}}
{{- define "istiod.image" -}}
{{- if contains "/" .image }}{{ .image }}
{{- else if .hub }}{{ trimSuffix "/" .hub }}/{{ .image }}:{{ include "istiod.text" .tag }}
{{- else }}{{ .image }}:{{ include "istiod.text" .tag }}
{{- end }}
{{- end -}}

{{- /* The settings of the mesh: the user's, over those that follow from the installation. */ -}}
{{- define "istiod.mesh" -}}
{{- $address := printf "%s.%s.svc:15012" (include "istiod.name" .) .Release.Namespace -}}
{{- if .Values.global.caAddress }}{{ $address = .Values.global.caAddress }}{{ end -}}
{{- $own := dict "rootNamespace" (include "istiod.namespace" .) "trustDomain" "cluster.local" "defaultConfig" (dict "discoveryAddress" $address) -}}
{{- toYaml (merge (dict) .Values.meshConfig $own) }}
{{- end -}}

{{- /* The values that injection reads. */ -}}
{{- define "istiod.injectionValues" -}}
{{- $tag := .Values.global.tag | default .Chart.AppVersion -}}
{{- $global := merge (dict "tag" $tag "istioNamespace" .Release.Namespace) (omit .Values.global "tag" "istioNamespace" "meshNetworks") -}}
{{- $pilot := pick .Values.pilot "env" -}}
{{- dict "revision" .Values.revision "global" $global "pilot" $pilot "sidecarInjectorWebhook" .Values.sidecarInjectorWebhook | toPrettyJson }}
{{- end -}}
