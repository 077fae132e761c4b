//! `dafs stat`: attributes, and which path serves a file.

use crate::context::Context;
use crate::failure::{Failure, Result, each};
use crate::format;
use crate::json::Json;
use crate::names;
use crate::output::Output;
use crate::probe::{self, Pass, Probe};
use dafs_client::{Attr, FileType};
use std::ffi::OsString;

/// Show attributes, and with --path which path serves a file and why
///
/// --path reads the file page by page with a client that holds no references at first. A page is
/// served inline (in the server's reply), direct (placed by the server into the client's buffer)
/// or by ordma (read by the client from the server's memory, which costs no handler call).
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to show; a symbolic link itself, except for --path
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<OsString>,
    /// Read the file and tell for each pass which path served it
    #[arg(short, long)]
    path: bool,
    /// How often to read it
    #[arg(long, value_name = "N", default_value = "2", requires = "path")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1000))]
    passes: u16,
    /// How many pages to read, from its beginning; "all" for the whole file
    #[arg(long, value_name = "N", default_value = "1024", requires = "path", value_parser = pages)]
    pages: Pages,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

/// How many pages to read at most.
#[derive(Clone, Copy, Debug)]
struct Pages(Option<u64>);

fn pages(text: &str) -> std::result::Result<Pages, String> {
    match text.parse() {
        _ if text == "all" => Ok(Pages(None)),
        Ok(0) | Err(_) => Err("must be a number above 0, or all".into()),
        Ok(pages) => Ok(Pages(Some(pages))),
    }
}

/// Runs the subcommand.
pub fn run(cx: &Context, args: &Args) -> Result {
    let mut output = Output::new();
    let result = each(&args.paths, |path| {
        let target = cx.target(path)?;
        let client = cx.client(&target)?;
        let fail = |error: &_| Failure::client("stat", &target, error);
        let attr = if args.path {
            client.metadata(&target.path)
        } else {
            client.symlink_metadata(&target.path)
        };
        let attr = attr.map_err(|error| fail(&error))?;
        let link = match attr.r#type() {
            FileType::Symlink => {
                let link = client.read_link(&target.path).map_err(|error| fail(&error))?;
                Some(names::bytes(&link).to_vec())
            }
            _ => None,
        };
        let probe = if args.path {
            if attr.r#type() != FileType::Regular {
                let why = format!("it is a {}", format::type_name(attr.r#type()));
                return Err(Failure::new("read", &target, why, "name a file for --path"));
            }
            Some(probe::probe(cx, &target, args.passes, args.pages.0)?)
        } else {
            None
        };
        if args.json {
            let mut fields = vec![("path".to_owned(), Json::text(target.to_string()))];
            fields.extend(format::attr_json(&attr));
            fields.extend(link.map(|link| ("link".into(), Json::text(names::encode(&link)))));
            fields.extend(probe.map(|probe| ("served".into(), probe.json())));
            return output.line(Json::Object(fields));
        }
        output.line(format_args!("    file {target}"))?;
        attributes(&mut output, &attr, link.as_deref())?;
        probe.map_or(Ok(()), |probe| served(&mut output, &probe))
    });
    output.finish()?;
    result
}

fn attributes(output: &mut Output, attr: &Attr, link: Option<&[u8]>) -> Result {
    let kind = format::type_name(attr.r#type());
    match link {
        Some(link) => output.line(format_args!("    type {kind} to {}", names::show(link)))?,
        None => output.line(format_args!("    type {kind}"))?,
    }
    output.line(format_args!(
        "    size {} bytes ({}), {} on disk",
        attr.size,
        format::size(attr.size),
        format::size(attr.used)
    ))?;
    output.line(format_args!("    mode {} ({:04o})", format::mode(attr), attr.mode))?;
    output.line(format_args!(
        "   owner uid {}, gid {}; {} links; inode {}",
        attr.uid, attr.gid, attr.nlink, attr.inode
    ))?;
    output.line(format_args!("modified {}", format::time(attr.mtime)))?;
    output.line(format_args!(" changed {}", format::time(attr.ctime)))?;
    output.line(format_args!("accessed {}", format::time(attr.atime)))
}

fn served(output: &mut Output, probe: &Probe) -> Result {
    let Probe { choice, trust, page_size, passes } = probe;
    output.line(format_args!("  engine {}: {}", choice.engine, choice.why))?;
    trust.tell(output)?;
    for (number, pass) in passes.iter().enumerate() {
        let Pass { report, pages, faults, p50, p99, handler_calls } = pass;
        let faults: Vec<_> =
            faults.iter().map(|(fault, count)| format!("{} {count}", fault.name())).collect();
        let faults = if faults.is_empty() { "none".into() } else { faults.join(", ") };
        let rearming = match report.rearming {
            0 => String::new(),
            pages => format!("; {pages} by RPC while the NIC was set up again"),
        };
        output.line(format_args!(
            "  pass {} {pages} pages of {page_size} bytes: {} inline, {} direct, {} ordma; \
             faults: {faults}{rearming}; p50 {}, p99 {}; handler calls {handler_calls}",
            number + 1,
            report.inline,
            report.direct,
            report.ordma,
            format::micros(*p50),
            format::micros(*p99),
        ))?;
    }
    Ok(())
}
