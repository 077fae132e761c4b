//! OPEN: opens a file, and may create or truncate it.

use super::{OpContext, OpError, Open};
use crate::cache::OpenFile;
use crate::store::{CreateOptions, Handle, Node, Store};
use dafs_proto::{Create, OpenReply, OpenRequest};
use std::sync::Arc;

/// Bits of [`OpenRequest::access`].
const READ: u32 = 1;
const WRITE: u32 = 2;
/// Most references that come with the reply.
const MAX_REFS: u32 = 256;

/// Serves OPEN.
///
/// # Errors
/// The store's, and [`TooManyOpenFiles`](dafs_proto::Status::TooManyOpenFiles). Where a file was
/// created and an error came afterwards, the file stays.
pub async fn open(cx: &OpContext, request: OpenRequest) -> Result<OpenReply, OpError> {
    if request.access == 0 || request.access & !(READ | WRITE) != 0 {
        let what = format!(
            "open with access {}, which is 1 to read, 2 to write, 3 for both",
            request.access
        );
        return Err(OpError::invalid(what));
    }
    let (read, write) = (request.access & READ != 0, request.access & WRITE != 0);
    if request.truncate && !write {
        return Err(OpError::invalid("truncate a file that is not opened for writing"));
    }
    if write {
        cx.check_writable()?;
    }
    cx.session.check_opens()?;

    let target = Target::parse(&request)?;
    let size = request.attr.as_ref().and_then(|attr| attr.size);
    let cache = Arc::clone(cx.server.cache());
    let (node, created, file) = cx
        .store(move |store| {
            let (node, created) = target.find(store)?;
            let (file, created) = match created {
                Some(file) => (file, true),
                None => (store.open(&node.handle, write)?, false),
            };
            Ok((node, created, cache.open(file)?.hold()))
        })
        .await?;
    if created {
        if let Some(size) = size.filter(|size| *size > 0) {
            file.set_size(size).await?;
        }
    } else if request.truncate {
        file.set_size(0).await?;
    } else {
        file.revalidate().await?;
    }
    reply(cx, node, file, (read, write), created, request.want_refs)
}

fn reply(
    cx: &OpContext,
    node: Node,
    file: OpenFile,
    (read, write): (bool, bool),
    created: bool,
    want_refs: u32,
) -> Result<OpenReply, OpError> {
    let Node { handle, mut attr, .. } = node;
    file.overlay(&mut attr);
    let mut refs = Vec::new();
    if read {
        file.refs(0, want_refs.min(MAX_REFS).into(), &mut refs);
    }
    let number = file.number();
    let wire = handle.as_bytes().to_vec();
    let open = cx.session.add_open(Arc::new(Open { file, read, write, handle }))?;
    Ok(OpenReply { open, handle: wire, file: number, attr: Some(attr), refs, created, key: None })
}

/// What is to be opened.
enum Target {
    Handle(Handle),
    Name { directory: Handle, name: Vec<u8>, create: Option<CreateOptions> },
}

impl Target {
    fn parse(request: &OpenRequest) -> Result<Self, OpError> {
        let create = Create::try_from(request.create)
            .map_err(|_| OpError::invalid(format!("open with create {}", request.create)))?;
        if request.name.is_empty() {
            if create != Create::No {
                return Err(OpError::invalid("create a file without a name"));
            }
            return Ok(Self::Handle(Handle::from_wire(&request.handle)?));
        }
        let create = (create != Create::No).then(|| CreateOptions {
            exclusive: create == Create::Exclusive,
            attr: request.attr.unwrap_or_default(),
        });
        let directory = Handle::from_wire(&request.directory)?;
        Ok(Self::Name { directory, name: request.name.clone(), create })
    }

    fn find(
        &self,
        store: &dyn Store,
    ) -> crate::store::Result<(Node, Option<Arc<dyn crate::store::StoreFile>>)> {
        match self {
            Self::Handle(handle) => Ok((store.node(handle)?, None)),
            Self::Name { directory, name, create: None } => {
                Ok((store.lookup(directory, name)?, None))
            }
            Self::Name { directory, name, create: Some(options) } => {
                store.create(directory, name, options)
            }
        }
    }
}
