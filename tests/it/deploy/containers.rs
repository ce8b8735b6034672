//! Image, compose file and Kubernetes: judged by their schemas and linters, and the agent in a root with only what the image
//! has. No registry and no cluster can be had here.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use jsonschema::Validator;
use serde_json::{Value, json};

use super::{file, read, tool, yaml};
use crate::rig::{Folder, agent::command, is_root, must};

fn holds(judge: &Validator, document: &Value) {
    let complaints: Vec<_> =
        judge.iter_errors(document).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
}

fn schema(name: &str) -> Value {
    serde_json::from_slice(&fs::read(tool(name)).unwrap()).unwrap()
}

#[test]
fn the_compose_file_is_one_and_opens_no_port_to_others() {
    let compose = yaml(&read("compose.yaml")).remove(0);
    holds(&jsonschema::validator_for(&schema("compose.schema.json")).unwrap(), &compose);
    for (name, service) in compose["services"].as_object().unwrap() {
        for port in service["ports"].as_array().unwrap() {
            assert!(port.as_str().unwrap().starts_with("127.0.0.1:"), "{name}: {port}");
        }
        for mount in service["volumes"].as_array().unwrap() {
            let (source, _) = mount.as_str().unwrap().split_once(':').unwrap();
            let there = match source.strip_prefix("./") {
                Some(name) => file(name).is_file(),
                None => compose["volumes"].as_object().unwrap().contains_key(source),
            };
            assert!(there, "{name}: {mount}");
        }
    }
    let agent = compose["services"]["agent"]["environment"].as_object().unwrap();
    let variables = agent.iter().map(|(name, value)| (name.as_str(), value.as_str().unwrap()));
    accepted(&[], variables.collect());
}

/// The agent finds nothing wrong with a configuration.
fn accepted(args: &[&str], variables: BTreeMap<&str, &str>) {
    let output = command(["config"]).args(args).envs(variables).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_dockerfile_keeps_to_the_rules_of_its_linter() {
    must(Command::new(tool("hadolint")).arg(file("Dockerfile")));
    // What it copies is there, and let through.
    let (dockerfile, ignore) = (read("Dockerfile"), read("Dockerfile.dockerignore"));
    for line in dockerfile.lines().filter(|line| line.starts_with("COPY ") && !line.contains("--from")) {
        let mut words: Vec<_> = line.split_whitespace().skip(1).collect();
        words.pop();
        for name in words {
            assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(name).exists(), "{name}");
            assert!(ignore.lines().any(|line| line == format!("!{name}")), "{name} is not let through");
        }
    }
}

/// The image's last stage by hand: the program, the shared libraries of gcr.io/distroless/cc, the certificates, no shell.
#[test]
fn in_a_root_with_nothing_but_what_the_image_has_the_agent_runs() {
    let image = Folder::new("image");
    let root = image.path();
    let binary = Path::new(env!("CARGO_BIN_EXE_postgres-agent"));
    let put = |from: &Path, to: &str| {
        let to = root.join(to.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(from, to).unwrap();
    };
    put(binary, "/usr/bin/postgres-agent");
    put(Path::new("/etc/ssl/certs/ca-certificates.crt"), "/etc/ssl/certs/ca-certificates.crt");
    for line in must(Command::new("ldd").arg(binary)).lines().filter(|line| !line.contains("linux-vdso")) {
        let path = line.split_whitespace().find(|word| word.starts_with('/')).unwrap();
        let name = Path::new(path).file_name().unwrap().to_str().unwrap();
        let has = ["libc.so.6", "libm.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2"];
        assert!(has.contains(&name), "the image has no {name}");
        put(Path::new(path), path);
    }
    fs::create_dir_all(root.join("var/lib/postgres-agent")).unwrap();
    let inside = |args: &[&str]| {
        // A user namespace where this is not root: chroot asks for a right.
        let mut command = if is_root() { Command::new("/usr/sbin/chroot") } else { Command::new("/usr/bin/unshare") };
        if is_root() {
            command.arg("--userspec=65532:65532");
        } else {
            command.args(["--map-root-user", "/usr/sbin/chroot"]);
        }
        command.arg(root).arg("/usr/bin/postgres-agent").args(args).env_clear();
        must(command.env("POSTGRES_AGENT_AMQP__URL", "amqps://broker.example").env("PGUSER", "postgres_agent"))
    };
    assert_eq!(inside(&["--version"]), format!("postgres-agent {}\n", env!("CARGO_PKG_VERSION")));
    assert!(inside(&["config"]).contains("amqps://broker.example"));
    assert!(inside(&["schema", "pg_locks"]).contains("pg_locks"));
    let status = inside(&["collect", "agent_status"]);
    assert!(status.contains("\"collector\":\"agent_status\""), "{status}");
}

fn kustomize(name: &str) -> Vec<Value> {
    let text = must(Command::new(tool("kubectl")).arg("kustomize").arg(file("kubernetes").join(name)));
    let documents = yaml(&text);
    // The first version with sidecars without a feature gate, and a new one.
    for version in ["1.29", "1.37"] {
        let mut judge = schema(&format!("kubernetes-{version}.schema.json"));
        for document in &documents {
            let (api, kind) = (document["apiVersion"].as_str().unwrap(), document["kind"].as_str().unwrap());
            let group = if api.contains('/') { api.replace('/', ".") } else { format!("core.{api}") };
            judge["$ref"] = json!(format!("#/$defs/io.k8s.api.{group}.{kind}"));
            holds(&jsonschema::validator_for(&judge).unwrap(), document);
        }
    }
    documents
}

fn of_kind<'a>(documents: &'a [Value], kind: &str) -> &'a Value {
    documents.iter().find(|document| document["kind"] == kind).unwrap_or_else(|| panic!("a {kind}"))
}

/// What is true of the agent's container wherever it runs.
fn is_kept_small(pod: &Value, container: &Value) {
    assert_eq!(container["livenessProbe"]["httpGet"], json!({"path": "/healthz", "port": "agent-http"}));
    assert_eq!(container["ports"][0]["containerPort"], 9488);
    let security = &container["securityContext"];
    assert_eq!((&security["readOnlyRootFilesystem"], &security["runAsNonRoot"]), (&true.into(), &true.into()));
    assert_eq!(security["capabilities"]["drop"], json!(["ALL"]));
    // The image's user, so that its folders are its own.
    assert!(read("Dockerfile").contains(&format!("USER {0}:{0}\n", security["runAsUser"])));
    assert!(
        container["resources"]["limits"]["memory"].is_string() && container["resources"]["limits"]["cpu"].is_null()
    );
    let volumes: Vec<_> = pod["volumes"].as_array().unwrap().iter().map(|volume| &volume["name"]).collect();
    let mounts = container["volumeMounts"].as_array().unwrap();
    let mount = |path: &str| mounts.iter().find(|mount| mount["mountPath"] == path).unwrap_or_else(|| panic!("{path}"));
    for path in ["/etc/postgres-agent", "/run/secrets/postgres-agent"] {
        assert!(volumes.contains(&&mount(path)["name"]) && mount(path)["readOnly"] == true, "{path}");
    }
    assert!(mount("/var/lib/postgres-agent")["readOnly"].is_null());
}

/// The configuration that a config map holds, as the agent itself reads it.
fn config_is_accepted(documents: &[Value]) {
    let maps = documents.iter().filter_map(|document| document["data"]["agent.toml"].as_str());
    let folder = Folder::new("kubernetes");
    let path = folder.path().join("agent.toml");
    for text in maps {
        assert!(text.contains("listen = \"0.0.0.0:9488\""), "the probes come from outside: {text}");
        fs::write(&path, text).unwrap();
        let variables = [("POSTGRES_AGENT_AMQP__URL", "amqp://user@broker"), ("POSTGRES_AGENT_HTTP__LISTEN", "")];
        accepted(&["--config", path.to_str().unwrap()], variables.into());
    }
}

#[test]
fn the_sidecar_is_one_of_kubernetes_own_and_cannot_take_the_database_out_of_service() {
    let documents = kustomize("example");
    let set = of_kind(&documents, "StatefulSet");
    let pod = &set["spec"]["template"]["spec"];
    let [agent] = pod["initContainers"].as_array().unwrap().as_slice() else { panic!("one sidecar: {pod}") };
    assert_eq!((&agent["name"], &agent["restartPolicy"]), (&"postgres-agent".into(), &"Always".into()));
    // Where it stood, an outage of the broker would take PostgreSQL's pod out of its Service, and a start would wait.
    assert!(agent["readinessProbe"].is_null() && agent["startupProbe"].is_null());
    is_kept_small(pod, agent);
    config_is_accepted(&documents);
    // The spool is on a claim of its own here, beside PostgreSQL's.
    let claims = set["spec"]["volumeClaimTemplates"].as_array().unwrap();
    let claims: Vec<_> = claims.iter().map(|claim| claim["metadata"]["name"].as_str().unwrap()).collect();
    assert_eq!(claims, ["data", "postgres-agent-spool"]);
    assert!(!pod["volumes"].to_string().contains("spool"), "{}", pod["volumes"]);
}

#[test]
fn the_agent_in_a_pod_of_its_own_says_when_it_is_ready() {
    let documents = kustomize("standalone");
    let pod = &of_kind(&documents, "StatefulSet")["spec"]["template"]["spec"];
    let mut pod = pod.clone();
    let agent = pod["containers"][0].take();
    assert_eq!(agent["readinessProbe"]["httpGet"]["path"], "/readyz");
    is_kept_small(&pod, &agent);
    config_is_accepted(&documents);
    let text = documents.iter().find_map(|document| document["data"]["agent.toml"].as_str()).unwrap();
    assert!(text.contains("[collectors.system_metrics]\nenabled = false"), "the pod's host is not the database's");
}

#[test]
fn without_a_claim_the_spool_is_a_bounded_folder_of_the_pod() {
    let sidecar = yaml(&read("kubernetes/sidecar/sidecar.yaml")).remove(0);
    let volumes = sidecar["spec"]["template"]["spec"]["volumes"].as_array().unwrap();
    let spool = volumes.iter().find(|volume| volume["name"] == "postgres-agent-spool").unwrap();
    let limit = spool["emptyDir"]["sizeLimit"].as_str().unwrap().strip_suffix("Mi").unwrap();
    // spool.max_bytes, and what it takes beside.
    assert!(limit.parse::<u32>().unwrap() >= 1024 + 100);
}
