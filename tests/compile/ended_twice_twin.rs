fn main() {
    let guard = privilege_guard::GroupChange::new().assume_on_thread().unwrap();
    guard.original();
    guard.restore().unwrap();
}
