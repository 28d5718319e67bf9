<?php
// Runs the blocks for Laravel of docs/clients.md with its mail component: php laravel_recipe.php SUBJECT ENV CONFIG
require getenv('LARAVEL') ?: 'Illuminate/Mail/autoload.php';

use Illuminate\Config\Repository;
use Illuminate\Container\Container;
use Illuminate\Events\Dispatcher;
use Illuminate\Filesystem\Filesystem;
use Illuminate\Mail\MailManager;
use Illuminate\View\Engines\EngineResolver;
use Illuminate\View\Factory;
use Illuminate\View\FileViewFinder;

foreach (parse_ini_file($argv[2], false, INI_SCANNER_RAW) as $name => $value) {
    $_ENV[$name] = $_SERVER[$name] = $value;
}
$from = ['address' => env('MAIL_FROM_ADDRESS'), 'name' => ''];
$mailers = eval('return [' . file_get_contents($argv[3]) . '];');
$app = new Container();
$app['config'] = new Repository(['mail' => ['default' => env('MAIL_MAILER'), 'mailers' => $mailers, 'from' => $from]]);
$app['events'] = new Dispatcher($app);
$app['view'] = new Factory(new EngineResolver(), new FileViewFinder(new Filesystem(), []), $app['events']);
try {
    (new MailManager($app))->raw('Hello', fn ($message) => $message->to('to@x.example')->subject($argv[1]));
} catch (Exception $error) {
    fwrite(STDERR, get_class($error) . ': ' . $error->getMessage());
    exit(1);
}
