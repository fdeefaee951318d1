fn main() {
    let guard = privilege_guard::GroupChange::new().assume_on_thread().unwrap().original();
    std::thread::scope(|scope| {
        scope.spawn(|| print(&guard));
    });
}

fn print(what: &impl std::fmt::Debug) {
    println!("{what:?}");
}
