//! From a name to a folder: list, choose, measure, download, link.

use std::path::PathBuf;

use hf_hub::api::RepoInfo;
use ureq::http::HeaderMap;

use super::cache::{ModelCache, is_etag, is_file_name, is_plain};
use super::client::{Client, Follow, Request, Tried, Trouble};
use super::download::{Remote, fetch, is_there, part_size};
use super::refusal::{Subject, no_revision};
use super::select::{Weights, has_configuration, shards, small, weights};
use super::space::free_bytes;
use super::{Event, ModelId, Parts, PullOptions, Pulled, Settings};
use crate::files::{MAX_TEXT, read_text};
use crate::{Error, Result, units};

/// Most files of a repository.
const MAX_FILES: usize = 100_000;
/// Space that is left for others.
const RESERVE: u64 = 64 << 20;

/// As [`pull`](super::pull), with other settings than those of the environment.
///
/// # Errors
/// As for [`pull`](super::pull).
pub fn pull_with(
    settings: &Settings,
    id: &ModelId,
    options: &PullOptions,
    on: &mut dyn FnMut(Event),
) -> Result<Pulled> {
    let cache = ModelCache::new(&settings.cache, id);
    if settings.offline {
        return cached(&cache, id, options)?.ok_or_else(|| not_cached(&cache, id));
    }
    // A commit never changes: what is there is all there is to know.
    if id.is_commit()
        && let Ok(Some(pulled)) = cached(&cache, id, options)
    {
        return Ok(pulled);
    }
    let pull = Pull { client: Client::new(settings), cache: &cache, id, options };
    match pull.run(on) {
        Ok(pulled) => Ok(pulled),
        Err(Trouble::Final(error) | Trouble::Absent(error)) => Err(error),
        Err(trouble) => {
            let error = trouble.into_error();
            match cached(&cache, id, options) {
                Ok(Some(pulled)) if options.cached_if_unreachable => {
                    on(Event::Note(format!("{error}; using the copy in the cache")));
                    Ok(pulled)
                }
                _ => Err(error),
            }
        }
    }
}

/// The model as the cache has it, if it is whole.
fn cached(cache: &ModelCache, id: &ModelId, options: &PullOptions) -> Result<Option<Pulled>> {
    let Some(commit) = cache.commit() else { return Ok(None) };
    let names = cache.names(&commit);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    if names.is_empty() {
        return Ok(None);
    }
    let mut wanted: Vec<String> = small(&names).into_iter().map(String::from).collect();
    if options.parts == Parts::Configuration && has_configuration(&names) {
        return Ok(Some(done(cache, id, &commit, &wanted, 0)));
    }
    match weights(id.repo(), &names, options.file.as_deref()) {
        Ok(Weights::Whole(name)) => wanted.push(name),
        Ok(Weights::Index(index)) => {
            let path = cache.snapshot(&commit).join(&index);
            let parts = shards(&read_text(&path)?).map_err(|e| e.in_file(&path))?;
            if !parts.iter().all(|part| names.contains(&part.as_str())) {
                return Ok(None);
            }
            wanted.push(index);
            wanted.extend(parts);
        }
        // Several .pth files are there: that is for the user to know. None: the copy is not whole.
        Err(error) if names.iter().any(|name| name.ends_with(".pth")) => return Err(error),
        Err(_) => return Ok(None),
    }
    Ok(Some(done(cache, id, &commit, &wanted, 0)))
}

fn done(cache: &ModelCache, id: &ModelId, commit: &str, names: &[String], downloaded: u64) -> Pulled {
    Pulled {
        model: id.repo().into(),
        revision: id.revision().into(),
        commit: commit.into(),
        folder: cache.snapshot(commit),
        files: cache.sizes(commit, names),
        downloaded,
    }
}

fn not_cached(cache: &ModelCache, id: &ModelId) -> Error {
    let found =
        if cache.folder().is_dir() { "only a part of it, or another revision" } else { "nothing of it" };
    Error::at(&cache.folder(), format!("HF_HUB_OFFLINE is set and {id} is not in the cache: found {found}"))
        .hint(format!("once without HF_HUB_OFFLINE: semisep pull {id}"))
}

struct Pull<'a> {
    client: Client<'a>,
    cache: &'a ModelCache,
    id: &'a ModelId,
    options: &'a PullOptions,
}

impl Pull<'_> {
    fn run(&self, on: &mut dyn FnMut(Event)) -> Tried<Pulled> {
        let info = self.info(on)?;
        let names: Vec<&str> = info.siblings.iter().map(|s| s.rfilename.as_str()).collect();
        let commit = info.sha.as_str();
        let mut wanted: Vec<String> = small(&names).into_iter().map(String::from).collect();
        let mut downloaded = 0;
        let configuration = self.options.parts == Parts::Configuration && has_configuration(&names);
        if !configuration {
            downloaded += self.add_weights(&names, commit, &mut wanted, on)?;
        }
        if !wanted.iter().all(|name| self.cache.has(commit, name)) {
            let remotes = self.remotes(commit, &wanted, on)?;
            downloaded += self.download(commit, &remotes, on)?;
            // All or none: a folder with a part of the weights would pass for a damaged model.
            for remote in &remotes {
                self.cache.link(commit, &remote.name, &remote.etag)?;
            }
        }
        // A configuration alone does not take the place of a whole model.
        if !configuration || self.cache.commit().is_none() {
            self.cache.set_commit(commit)?;
        }
        Ok(done(self.cache, self.id, commit, &wanted, downloaded))
    }

    /// Adds the names of the weights; where an index has them, that is downloaded.
    fn add_weights(
        &self,
        names: &[&str],
        commit: &str,
        wanted: &mut Vec<String>,
        on: &mut dyn FnMut(Event),
    ) -> Tried<u64> {
        let index = match self.weights(names, commit)? {
            Weights::Whole(name) => {
                wanted.push(name);
                return Ok(0);
            }
            Weights::Index(index) => index,
        };
        let (path, downloaded) = self.index(commit, &index, on)?;
        let place = format!("{index} of {}", self.id);
        let parts = shards(&read_text(&path)?).map_err(|e| e.prefixed(&place))?;
        if let Some(part) = parts.iter().find(|part| !names.contains(&part.as_str())) {
            return Err(Error::new(format!("{place} names {part}, which is not there"))
                .hint("the repository is not whole; try another revision")
                .into());
        }
        wanted.push(index);
        wanted.extend(parts);
        Ok(downloaded)
    }

    /// The weights of the list; where several exclude each other, the one that is in the cache.
    fn weights(&self, names: &[&str], commit: &str) -> Result<Weights> {
        let found = weights(self.id.repo(), names, self.options.file.as_deref());
        if found.is_err() && self.options.file.is_none() {
            let here = self.cache.names(commit);
            let here: Vec<&str> =
                here.iter().map(String::as_str).filter(|name| names.contains(name)).collect();
            return weights(self.id.repo(), &here, None).or(found);
        }
        found
    }

    fn subject(&self) -> Subject<'_> {
        Subject { id: self.id, file: None }
    }

    /// The list of files at the revision.
    fn info(&self, on: &mut dyn FnMut(Event)) -> Tried<RepoInfo> {
        let endpoint = &self.client.settings.endpoint;
        let url = format!("{}{}", endpoint.url(), self.cache.api_path());
        let text = match self.client.text(&url, self.subject(), on) {
            Err(Trouble::Absent(error)) => return Err(self.which_is_missing(error, on).into()),
            other => other?,
        };
        let host = endpoint.origin().host();
        let odd = |what: String| {
            Error::new(format!("{host} lists the files of {} in a way that cannot be used: {what}", self.id))
                .hint("see whether HF_ENDPOINT has the interface of the Hub")
        };
        let info: RepoInfo = serde_json::from_str(&text).map_err(|e| odd(e.to_string()))?;
        if !is_plain(&info.sha) {
            return Err(odd(format!("expected a commit, found {:?}", shortened(&info.sha))).into());
        }
        if info.siblings.len() > MAX_FILES {
            return Err(odd(format!("expected at most {MAX_FILES} files")).into());
        }
        Ok(info)
    }

    /// The error of a list that is not there: whether the model or its revision is missing.
    fn which_is_missing(&self, error: Error, on: &mut dyn FnMut(Event)) -> Error {
        let url = format!("{}/api/models/{}", self.client.settings.endpoint.url(), self.id.repo());
        match self.client.text(&url, self.subject(), on) {
            Ok(_) => no_revision(self.id),
            Err(_) => error,
        }
    }

    /// Sizes and checksums of these files.
    fn remotes(&self, commit: &str, names: &[String], on: &mut dyn FnMut(Event)) -> Tried<Vec<Remote>> {
        names.iter().map(|name| self.remote(commit, name, on)).collect()
    }

    fn remote(&self, commit: &str, name: &str, on: &mut dyn FnMut(Event)) -> Tried<Remote> {
        if !is_file_name(name) {
            return Err(Error::new(format!(
                "{}: expected the plain name of a file, found {name:?}",
                self.id
            ))
            .into());
        }
        let url = format!("{}{}", self.client.settings.endpoint.url(), self.cache.file_path(commit, name));
        let subject = Subject { file: Some(name), ..self.subject() };
        let request = Request { head: true, url: &url, from: 0, follow: Follow::Endpoint, subject };
        let response = self.client.retried(on, &mut || self.client.send(request))?;
        let (headers, redirected) = (response.headers(), response.status().is_redirection());
        let odd = |what: &str| Error::new(format!("{} of {}: the server gives {what}", name, self.id));
        if text(headers, "x-repo-commit").is_some_and(|found| found != commit) {
            return Err(odd("another commit than asked for")
                .hint("try again: it may have just changed")
                .into());
        }
        let etag = text(headers, "x-linked-etag").or_else(|| text(headers, "etag"));
        let etag = etag.map(|etag| etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"'));
        let etag =
            etag.filter(|etag| is_etag(etag)).ok_or_else(|| odd("no etag that could name its content"))?;
        let length = text(headers, "content-length").filter(|_| !redirected);
        let size = text(headers, "x-linked-size").or(length).and_then(|size| size.parse().ok());
        let size = size.ok_or_else(|| odd("no size"))?;
        if name.ends_with(".json") && size > MAX_TEXT {
            let found = units::bytes(size);
            return Err(odd(&format!("{found} of JSON, expected at most {}", units::bytes(MAX_TEXT))).into());
        }
        Ok(Remote { name: name.into(), etag: etag.into(), size, url })
    }

    /// Where an index is, and what it took to have it there.
    fn index(&self, commit: &str, name: &str, on: &mut dyn FnMut(Event)) -> Tried<(PathBuf, u64)> {
        if self.cache.has(commit, name) {
            return Ok((self.cache.snapshot(commit).join(name), 0));
        }
        let remote = self.remote(commit, name, on)?;
        // It belongs to no bar yet.
        let notes = &mut |event| {
            if matches!(event, Event::Note(_)) {
                on(event);
            }
        };
        let came = self.fetch(&remote, notes)?;
        Ok((self.cache.blob(&remote.etag), came))
    }

    fn download(&self, commit: &str, remotes: &[Remote], on: &mut dyn FnMut(Event)) -> Tried<u64> {
        let total = remotes.iter().fold(0u64, |sum, remote| sum.saturating_add(remote.size));
        let to_come: Vec<&Remote> = remotes.iter().filter(|remote| !is_there(self.cache, remote)).collect();
        let rest = |remote: &&Remote| remote.size - part_size(self.cache, remote);
        let missing = to_come.iter().map(rest).fold(0u64, u64::saturating_add);
        on(Event::Planned {
            model: self.id.repo().into(),
            commit: commit.into(),
            files: remotes.len(),
            total,
            missing,
        });
        self.check_space(missing)?;
        let mut downloaded = 0;
        for remote in remotes {
            downloaded += self.fetch(remote, on)?;
        }
        Ok(downloaded)
    }

    fn check_space(&self, missing: u64) -> Result<()> {
        let folder = self.cache.folder();
        if let Some(free) =
            free_bytes(&folder).filter(|free| missing > 0 && missing.saturating_add(RESERVE) > *free)
        {
            let message =
                format!("{} are to come, and {} are free", units::bytes(missing), units::bytes(free));
            return Err(
                Error::at(&folder, message).hint("make room, or set HF_HOME to a folder on another disk")
            );
        }
        Ok(())
    }

    fn fetch(&self, remote: &Remote, on: &mut dyn FnMut(Event)) -> Tried<u64> {
        on(Event::File(remote.name.clone()));
        let subject = Subject { file: Some(&remote.name), ..self.subject() };
        fetch(&self.client, self.cache, remote, subject, on)
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

fn shortened(text: &str) -> String {
    text.chars().take(60).collect()
}
