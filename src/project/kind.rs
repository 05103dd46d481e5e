//! The kinds of projects and what each comes with.

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

/// `runtime.kind`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Node.js, through tsx.
    Typescript,
    /// Node.js, through tsx as well.
    Javascript,
    /// Bun.
    Bun,
    /// CPython, in a virtual environment inside the project.
    Python,
    /// cargo.
    Rust,
}

impl Kind {
    /// All of them.
    pub const ALL: &[Kind] = &[Kind::Typescript, Kind::Javascript, Kind::Bun, Kind::Python, Kind::Rust];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Typescript => "typescript",
            Kind::Javascript => "javascript",
            Kind::Bun => "bun",
            Kind::Python => "python",
            Kind::Rust => "rust",
        }
    }

    /// The image whose content a machine of this kind starts from, unless `runtime.base_image` names another.
    pub fn base_image(self) -> &'static str {
        match self {
            Kind::Typescript | Kind::Javascript => "iiidev/node:latest",
            Kind::Bun => "oven/bun:latest",
            Kind::Python => "iiidev/python:latest",
            Kind::Rust => "library/rust:slim-bookworm",
        }
    }

    /// What installs dependencies when nothing says otherwise.
    pub fn package_manager(self) -> PackageManager {
        match self {
            Kind::Typescript | Kind::Javascript => PackageManager::Npm,
            Kind::Bun => PackageManager::Bun,
            Kind::Python => PackageManager::Pip,
            Kind::Rust => PackageManager::Cargo,
        }
    }

    /// Whether there is a choice of package managers.
    pub fn is_node(self) -> bool {
        matches!(self, Kind::Typescript | Kind::Javascript)
    }
}

/// `runtime.package_manager`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PackageManager {
    /// npm.
    Npm,
    /// Yarn.
    Yarn,
    /// pnpm.
    Pnpm,
    /// Bun.
    Bun,
    /// pip, the only one of Python projects.
    Pip,
    /// cargo, the only one of Rust projects.
    Cargo,
}

impl PackageManager {
    /// All of them.
    pub const ALL: &[PackageManager] = &[
        PackageManager::Npm,
        PackageManager::Yarn,
        PackageManager::Pnpm,
        PackageManager::Bun,
        PackageManager::Pip,
        PackageManager::Cargo,
    ];

    /// As it is written, and as its program is called.
    pub fn name(self) -> &'static str {
        match self {
            PackageManager::Npm => "npm",
            PackageManager::Yarn => "yarn",
            PackageManager::Pnpm => "pnpm",
            PackageManager::Bun => "bun",
            PackageManager::Pip => "pip",
            PackageManager::Cargo => "cargo",
        }
    }

    /// Whether projects of this kind can use it.
    pub fn fits(self, kind: Kind) -> bool {
        match self {
            PackageManager::Npm | PackageManager::Yarn | PackageManager::Pnpm => kind.is_node(),
            PackageManager::Bun => kind.is_node() || kind == Kind::Bun,
            PackageManager::Pip => kind == Kind::Python,
            PackageManager::Cargo => kind == Kind::Rust,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Display for PackageManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Serialize for PackageManager {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}
