//! OPEN: opens a file, and may create or truncate it.

use super::{OpContext, OpError, Open, stability};
use crate::store::{Access, CreateOptions, Credential, Handle, Node, Store};
use dafs_proto::{Create, OpenReply, OpenRequest};
use std::sync::Arc;

/// Most references that come with the reply.
const MAX_REFS: u32 = 256;

/// Serves OPEN.
///
/// # Errors
/// The store's, and [`TooManyOpenFiles`](dafs_proto::Status::TooManyOpenFiles). Where a file was
/// created and an error came afterwards, the file stays.
pub async fn open(cx: &OpContext, request: OpenRequest) -> Result<OpenReply, OpError> {
    let access = match request.access {
        1 => Access::Read,
        2 => Access::Write,
        3 => Access::ReadWrite,
        other => {
            let what =
                format!("open with access {other}, which is 1 to read, 2 to write, 3 for both");
            return Err(OpError::invalid(what));
        }
    };
    if request.truncate && !access.writes() {
        return Err(OpError::invalid("truncate a file that is not opened for writing"));
    }
    if access.writes() {
        cx.check_writable()?;
    }
    cx.session.check_opens()?;

    let target = Target::parse(cx, &request)?;
    let size = request.attr.as_ref().and_then(|attr| attr.size);
    let (cache, export) = (Arc::clone(cx.server.cache()), Arc::clone(cx.export()));
    let since = cx.server.cache().moment();
    let (node, created, file) = cx
        .store(move |store, who| {
            let (node, created) = target.find(store, who)?;
            let (file, created) = match (created, &target) {
                (Some(file), _) => (file, true),
                (None, Target::Handle(handle)) => (store.reopen(who, handle, access)?, false),
                (None, Target::Name { .. }) => (store.open(who, &node.handle, access)?, false),
            };
            let file = cache.open(file, &export.name, export.protection)?;
            Ok((node, created, file.hold()))
        })
        .await?;
    let size = if created { size.filter(|size| *size > 0) } else { request.truncate.then_some(0) };
    let mut truncated = None;
    if let Some(size) = size {
        let (changed, _) = file.set_size_for(cx.session.writer(), size, None).await?;
        truncated = Some(stability::change(&changed));
    } else if !created {
        file.revalidate().await?;
    }
    let Node { handle, attr, .. } = node;
    let attr = file.attributes(since, attr).await?;
    let open = Arc::new(Open::new(file, access, handle));
    let (mut refs, mut key) = (Vec::new(), None);
    if open.read {
        open.file.refs(0, request.want_refs.min(MAX_REFS).into(), &mut refs);
        // The right was looked at before the file was in the cache, where its epoch is.
        key = loop {
            cx.check_right(&open).await?;
            if let Ok(key) = cx.key(&open, 0) {
                break key;
            }
        };
    }
    let (file, handle) = (open.file.number(), cx.wire(&open.handle));
    let identity = open.file.identity().to_wire();
    let open = cx.session.add_open(open)?;
    let attr = Some(attr);
    Ok(OpenReply { open, handle, file, attr, refs, created, key, identity, truncated })
}

/// What is to be opened.
enum Target {
    /// A file that the client had open before it lost its session.
    Handle(Handle),
    Name {
        directory: Handle,
        name: Vec<u8>,
        create: Option<CreateOptions>,
    },
}

impl Target {
    fn parse(cx: &OpContext, request: &OpenRequest) -> Result<Self, OpError> {
        let create = Create::try_from(request.create)
            .map_err(|_| OpError::invalid(format!("open with create {}", request.create)))?;
        if request.name.is_empty() {
            if create != Create::No {
                return Err(OpError::invalid("create a file without a name"));
            }
            return Ok(Self::Handle(cx.handle(&request.handle)?));
        }
        let create = (create != Create::No).then(|| CreateOptions {
            exclusive: create == Create::Exclusive,
            attr: request.attr.unwrap_or_default(),
        });
        let directory = cx.handle(&request.directory)?;
        Ok(Self::Name { directory, name: request.name.clone(), create })
    }

    fn find(
        &self,
        store: &dyn Store,
        who: &Credential,
    ) -> crate::store::Result<(Node, Option<Arc<dyn crate::store::StoreFile>>)> {
        match self {
            Self::Handle(handle) => Ok((store.node(who, handle)?, None)),
            Self::Name { directory, name, create: None } => {
                Ok((store.lookup(who, directory, name)?, None))
            }
            Self::Name { directory, name, create: Some(options) } => {
                store.create(who, directory, name, options)
            }
        }
    }
}
