//! collectd beside the agent: the smallest known sidecar that speaks AMQP. It sends numbers only, without texts, confirms or
//! anything on disk. What a cycle takes on one machine changes from hour to hour; beside a peer's it can be compared.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use crate::rig::warden;

const PROGRAM: &str = "/usr/sbin/collectd";
const CONFIG: &str = "collectd.conf";

/// Figures of the host and of one database each second, as Debian configures its plugins.
pub(crate) struct Collectd(Child);

impl Collectd {
    /// Starts it against a server and a broker on these ports.
    pub(crate) fn start(folder: &Path, postgres: u16, rabbit: u16, exchange: &str) -> Self {
        let folder = folder.join("collectd");
        fs::create_dir_all(&folder).unwrap();
        let loads = ["cpu", "memory", "disk", "df", "postgresql", "amqp"].map(|name| format!("LoadPlugin {name}\n"));
        let config = format!(
            "Interval 1\nBaseDir \"{0}\"\nPIDFile \"{0}/pid\"\nPluginDir \"/usr/lib/collectd\"\n\
             TypesDB \"/usr/share/collectd/types.db\"\n{1}\
             <Plugin postgresql>\n<Database postgres>\nHost \"127.0.0.1\"\nPort \"{postgres}\"\nUser \"agent\"\n\
             SSLMode \"disable\"\n</Database>\n</Plugin>\n\
             <Plugin amqp>\n<Publish \"peer\">\nHost \"127.0.0.1\"\nPort \"{rabbit}\"\nVHost \"/\"\nUser \"guest\"\n\
             Password \"guest\"\nExchange \"{exchange}\"\nPersistent true\nFormat \"JSON\"\n</Publish>\n</Plugin>\n",
            folder.display(),
            loads.concat(),
        );
        fs::write(folder.join(CONFIG), config).unwrap();
        let mut collectd = Command::new(PROGRAM);
        // It takes a path with blanks for several.
        collectd.args(["-f", "-C", CONFIG]).current_dir(&folder).stdin(Stdio::null());
        collectd.stdout(Stdio::null()).stderr(fs::File::create(folder.join("log")).unwrap());
        let child = collectd.spawn().expect("collectd starts: tests/servers.sh collectd-core (benches/run.sh does it)");
        warden::watch(child.id(), warden::Ends::OnKill);
        Self(child)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Collectd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        warden::forget(self.0.id());
    }
}
