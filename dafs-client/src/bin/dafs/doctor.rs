//! `dafs doctor`: which engines reach a server, which would be taken, and how both sides know each
//! other.

use crate::context::Context;
use crate::failure::{Failure, Result};
use crate::json::Json;
use crate::output::Output;
use crate::target::Target;
use crate::trust::Trust;
use dafs_client::ordma::rdma::DeviceInfo;
use dafs_client::{Connectors, EngineChoice};
use std::ffi::OsString;
use std::time::Instant;

/// Tell which engines reach a server, which one is taken, and why; which RDMA devices there are; and
/// whose keys are used
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Anything at the server; the default server if not given
    #[arg(value_name = "PATH")]
    path: Option<OsString>,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// What was found about an engine.
struct Finding {
    engine: &'static str,
    usable: bool,
    why: String,
}

/// Runs the subcommand.
pub fn run(cx: &Context, args: &Args) -> Result {
    let target = cx.target_or_default(args.path.as_deref())?;
    let tcp = try_engine(cx, &target, EngineChoice::Tcp, "tcp")?;
    let shm = try_engine(cx, &target, EngineChoice::Shm, "shm")?;
    let verbs = try_engine(cx, &target, EngineChoice::Verbs, "verbs")?;
    // Where they cannot be told, the engine's finding says why.
    let devices = (Connectors::default().devices)().unwrap_or_default();
    let taken = cx.connect(&target.location, cx.options());
    let (taken, failure) = match taken {
        Ok(client) => (Some(client), None),
        Err(failure @ Failure::Usage(_)) => return Err(failure),
        Err(failure) => (None, Some(failure)),
    };
    let findings = [tcp, shm, verbs];
    let trust = Trust::of(cx, &target, taken.as_ref());
    let taken = taken.map(|client| client.path_choice().clone());
    let mut output = Output::new();
    if args.json {
        let engines = findings.iter().map(|Finding { engine, usable, why }| {
            Json::object([
                ("engine", Json::text(*engine)),
                ("usable", Json::Bool(*usable)),
                ("why", Json::text(why)),
            ])
        });
        let taken = taken.map_or(Json::Null, |choice| {
            Json::object([("engine", Json::text(choice.engine)), ("why", Json::text(choice.why))])
        });
        output.line(Json::object([
            ("server", Json::text(target.location.to_string())),
            ("engines", Json::Array(engines.collect())),
            ("rdma_devices", Json::Array(devices.iter().map(device_json).collect())),
            ("taken", taken),
            ("protection", trust.json()),
        ]))?;
    } else {
        output.line(format_args!("server {}", target.location))?;
        for Finding { engine, usable, why } in &findings {
            let usable = if *usable { "yes" } else { "no" };
            output.line(format_args!("{engine:>6} {usable:<3} {why}"))?;
        }
        for DeviceInfo { name, active, mtu, .. } in &devices {
            let state = if *active { "active" } else { "down" };
            output.line(format_args!("device {name} {state}, MTU {mtu} bytes"))?;
        }
        match taken {
            Some(choice) => {
                output.line(format_args!(" taken {}: {}", choice.engine, choice.why))?
            }
            None => output.line(" taken none")?,
        }
        trust.tell(&mut output)?;
    }
    output.finish()?;
    failure.map_or(Ok(()), Err)
}

/// Connects by an engine and asks for the root's attributes.
fn try_engine(
    cx: &Context,
    target: &Target,
    choice: EngineChoice,
    engine: &'static str,
) -> Result<Finding> {
    let mut location = target.location.clone();
    location.engine = Some(choice);
    let client = match cx.connect(&location, cx.options()) {
        Ok(client) => client,
        Err(Failure::Failed(report)) => {
            return Ok(Finding { engine, usable: false, why: report.why });
        }
        Err(failure) => return Err(failure),
    };
    let begun = Instant::now();
    match client.metadata("/") {
        Ok(_) => {
            let time = crate::format::micros(begun.elapsed());
            Ok(Finding { engine, usable: true, why: format!("connected; a request took {time}") })
        }
        Err(error) => Ok(Finding { engine, usable: false, why: error.to_string() }),
    }
}

fn device_json(device: &DeviceInfo) -> Json {
    Json::object([
        ("name", Json::text(&device.name)),
        ("active", Json::Bool(device.active)),
        ("mtu", Json::number(device.mtu)),
    ])
}
