fn main() {
    println!("cargo:rustc-env=III_AGENT_PATH=/bin/true");
}
