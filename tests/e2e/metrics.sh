# shellcheck shell=bash
# Metrics, parsed by Prometheus' own parsers and compared with what was done; alert rules; the queries of
# the dashboard, answered by a Prometheus that scrapes millpond.

metrics_story() {
  local why path blob
  if ! why=$(have promtool prometheus); then
    skip metrics "$why"
    return
  fi
  mirror_is_fresh metrics || return 0
  path=$(mirror_path gzip)
  blob=$(image gzip '.host.layers[0]')
  quietly skopeo_wipe
  check "metrics: a client pulls" pull_and_verify skopeo gzip
  check "metrics: both formats parse, and say what was done" \
    /usr/bin/python3 "$E2E/metrics.py" compare "http://$MIRROR" "http://$MIRROR_DEBUG" "$path" "$blob"
  check "metrics: promtool check metrics has nothing to say" promtool_has_nothing_to_say
  check "metrics: the alert rules are right" promtool check rules "$ROOT/deploy/prometheus/alerts.yml"
  check "metrics: the alerts fire when they should" \
    promtool test rules "$ROOT/deploy/prometheus/alerts_test.yml"
  check "metrics: each panel of the dashboard shows data" panels_show_data "$path" "$blob"
  stop prometheus || true
  millpond_stop
}

promtool_has_nothing_to_say() {
  local said
  said=$(curl -sf -m 5 "http://$MIRROR_DEBUG/metrics" | promtool check metrics 2>&1)
  same "what promtool says" "" "$said"
}

panels_show_data() {
  local port
  port=$(free_ports 1)
  cat >"$WORK/prometheus.yml" <<YAML
global: {scrape_interval: 1s, scrape_timeout: 1s}
scrape_configs:
  - job_name: millpond
    static_configs: [{targets: ["$MIRROR_DEBUG"]}]
rule_files: ["$ROOT/deploy/prometheus/alerts.yml"]
YAML
  spawn prometheus prometheus --config.file="$WORK/prometheus.yml" \
    --storage.tsdb.path="$WORK/prometheus" --web.listen-address="127.0.0.1:$port"
  /usr/bin/python3 "$E2E/metrics.py" panels "http://$MIRROR" "http://127.0.0.1:$port" \
    "$1" "$2" "$ROOT/deploy/grafana/millpond.json"
}
