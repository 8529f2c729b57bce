//! The candidates of a comparison.

use std::path::Path;

use weft_router::cli::options::TapMode;
use weft_router::error::Result;

use super::pairs::{Pair, bridged, vxlan, weft, weft_of};
use super::{Options, peers};

/// All candidates that are wanted.
pub fn all(dir: &Path, options: &Options, wanted: impl Fn(&str) -> Result<bool>) -> Result<Vec<Pair>> {
    let mut pairs = Vec::new();
    let mut add = |name: &str, make: &dyn Fn(&str) -> Result<Pair>| -> Result<()> {
        if wanted(name)? {
            eprintln!("setting up {name}");
            pairs.push(make(name)?);
        }
        Ok(())
    };
    add("no overlay", &bridged)?;
    add("kernel VXLAN, in clear", &vxlan)?;
    add("weft", &|name| weft(name, 2, TapMode::Fast, &[], dir))?;
    if let Some(binary) = &options.against {
        add("weft, the other build", &|name| weft_of(binary, name, 2, TapMode::Fast, &[], dir))?;
    } else if !options.quick {
        add("weft, ChaCha20-Poly1305", &|name| weft(name, 2, TapMode::Fast, &["--no-aes"], dir))?;
        add("weft, one worker", &|name| weft(name, 2, TapMode::Fast, &["--workers", "1"], dir))?;
        add("weft, --busy-poll 0", &|name| weft(name, 2, TapMode::Fast, &["--busy-poll", "0"], dir))?;
        add("weft, --tap basic", &|name| weft(name, 2, TapMode::Basic, &[], dir))?;
        add("weft through a relay", &|name| weft(name, 3, TapMode::Fast, &[], dir))?;
    }
    for peer in peers::ALL {
        add(peer.name, &|_| peer.start(dir))?;
    }
    Ok(pairs)
}
