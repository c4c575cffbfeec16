{{- define "llamero.image" -}}
{{ include "llamero.reference" (dict "image" .Values.image "root" $) }}
{{- end }}
{{- define "llamero.workerImage" -}}
{{ include "llamero.reference" (dict "image" .Values.workerImage "root" $) }}
{{- end }}
{{- /* An image by its digest, else by its tag: (dict "image" .Values.image "root" $). */}}
{{- define "llamero.reference" -}}
{{ .image.repository }}{{ with .image.digest }}@{{ . }}{{ else }}:{{ .image.tag | default .root.Chart.AppVersion }}{{ end }}
{{- end }}
{{- define "llamero.labels" -}}
app.kubernetes.io/part-of: llamero
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}
{{- /* Selector labels of a part: (dict "name" "llamero-gateway" "root" $). */}}
{{- define "llamero.selector" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end }}
{{- /* How pods of a part are scheduled: (dict "name" "llamero-gateway" "values" .Values.gateway "root" $). */}}
{{- define "llamero.scheduling" -}}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
topologySpreadConstraints:
{{- if .values.topologySpreadConstraints }}
{{ toYaml .values.topologySpreadConstraints }}
{{- else }}
{{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "llamero.selector" (dict "name" $.name "root" $.root) | nindent 8 }}
{{- end }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- define "llamero.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}
{{- define "llamero.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}
{{- /* Whether a name is meant by one of the patterns: a name, or its beginning followed by *. */}}
{{- define "llamero.matches" -}}
(p, p.endsWith('*') ? {{ . }}.startsWith(p.substring(0, size(p) - 1)) : {{ . }} == p)
{{- end }}
{{- /* What both programs must reach: names, and the API server, which policies cannot select and so is meant by its ports. */}}
{{- define "llamero.basicEgress" -}}
- ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]
- ports:
    {{- range .Values.networkPolicy.apiServerPorts }}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
{{- end }}
{{- /* `helm upgrade --reuse-values` keeps the values of an older chart, which knows nothing of what came since. */}}
{{- define "llamero.checkValues" -}}
{{- range $key := list "tenants" "networkPolicy" "security" }}
{{- if not (hasKey $.Values $key) }}
{{- fail (printf "the values have no %s, as those of an older chart: upgrade with --reset-then-reuse-values in place of --reuse-values" $key) }}
{{- end }}
{{- end }}
{{- if not (hasKey .Values.security "certificates") }}
{{- fail "the values have no security.certificates, as those of an older chart: upgrade with --reset-then-reuse-values in place of --reuse-values" }}
{{- end }}
{{- if and .Values.security.mtls (not .Values.security.certificates) }}
{{- fail "security.mtls needs security.certificates: set it to true, or security.mtls to false" }}
{{- end }}
{{- end }}
