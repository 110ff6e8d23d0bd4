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

{{- define "istiod.labels" -}}
app: istiod
istio: pilot
istio.io/rev: {{ include "istiod.revision" . | quote }}
app.kubernetes.io/name: istiod
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/part-of: istio
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
operator.istio.io/component: Pilot
{{- end -}}

{{- /* A whole image reference: dict "image" NAME "hub" HUB "tag" TAG */ -}}
{{- define "istiod.image" -}}
{{- if contains "/" .image }}{{ .image }}
{{- else if .hub }}{{ trimSuffix "/" .hub }}/{{ .image }}:{{ .tag }}
{{- else }}{{ .image }}:{{ .tag }}
{{- end }}
{{- end -}}

{{- /* The settings of the mesh: the user's, over those that follow from the installation. */ -}}
{{- define "istiod.mesh" -}}
{{- $address := printf "%s.%s.svc:15012" (include "istiod.name" .) .Release.Namespace -}}
{{- if .Values.global.caAddress }}{{ $address = .Values.global.caAddress }}{{ end -}}
{{- $own := dict "rootNamespace" .Values.global.istioNamespace "trustDomain" "cluster.local" "defaultConfig" (dict "discoveryAddress" $address) -}}
{{- toYaml (merge (dict) .Values.meshConfig $own) }}
{{- end -}}

{{- /* The values that injection reads. */ -}}
{{- define "istiod.injectionValues" -}}
{{- $tag := .Values.global.tag | default .Chart.AppVersion -}}
{{- $global := merge (dict "tag" $tag "istioNamespace" .Release.Namespace) (omit .Values.global "tag" "istioNamespace" "meshNetworks") -}}
{{- $pilot := pick .Values.pilot "env" -}}
{{- dict "revision" .Values.revision "global" $global "pilot" $pilot "sidecarInjectorWebhook" .Values.sidecarInjectorWebhook | toPrettyJson }}
{{- end -}}
