fn main() {
    let guard = privilege_guard::GroupGuard::assume(1004).map(drop);
    std::thread::spawn(move || drop(guard));
}
